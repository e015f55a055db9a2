"""Who plays which part: student, teacher and fake score, and which weights each owns.

`use(role)` is the one way to a network, so that a later backbone with adapters can switch at the same place.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from torch import nn

Role = Literal["student", "teacher", "fake_score"]
ROLES: tuple[Role, ...] = ("student", "teacher", "fake_score")


class Roles(Protocol):
    """The contract: a context that yields the network of a role, and the parameters that its update may change."""

    def use(self, role: Role): ...

    def parameters(self, role: Role) -> list[nn.Parameter]: ...


class SeparateCopies:
    """Three networks; student and fake score start as copies of the frozen teacher, the student of `start` if given."""

    def __init__(self, teacher: nn.Module, start: nn.Module | None = None):
        self.networks: dict[Role, nn.Module] = {
            "student": copy.deepcopy(teacher if start is None else start).requires_grad_(True).train(),
            "teacher": teacher.requires_grad_(False).eval(),
            "fake_score": copy.deepcopy(teacher).requires_grad_(True).train(),
        }

    @contextmanager
    def use(self, role: Role) -> Iterator[nn.Module]:
        """Yield the network that plays `role`. Raises KeyError for an unknown role."""
        yield self.networks[role]

    def parameters(self, role: Role) -> list[nn.Parameter]:
        """The parameters an update of `role` changes; none for the teacher."""
        return [p for p in self.networks[role].parameters() if p.requires_grad]
