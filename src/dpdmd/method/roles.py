"""Who plays which part: student, teacher and fake score.

`Roles.use(role)` is the one way to a network. Roles that train LoRA adapters share the teacher's frozen network: there,
entering a role makes its adapter the active one, and the teacher is the network with all adapters off. How roles are
made from a pretrained network is in `dpdmd.models.role_networks`.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

from torch import nn

Role = Literal["student", "teacher", "fake_score"]
ROLES: tuple[Role, ...] = ("student", "teacher", "fake_score")
TRAINED_ROLES: tuple[Role, ...] = ("student", "fake_score")


class Adapters(Protocol):
    """Adapters of some roles on one network, of which one is active at a time."""

    roles: frozenset[Role]

    def activate(self, role: Role | None) -> None:
        """Compute with the adapter of `role`, or with none. Must not change any requires_grad."""

    def own_name(self, name: str, role: Role) -> str | None:
        """The name of a parameter without its role, None when it is not in the adapter of `role`."""


class Roles:
    """The networks of student, teacher and fake score.

    networks: what is called for each role; roles with adapters have one in common with the teacher, and it may be
    wrapped for several processes. modules: the same networks unwrapped. adapters: roles that train an adapter.
    num_calls: how often any network was entered so far.
    """

    def __init__(self, networks: Mapping[Role, nn.Module], adapters: Adapters | None = None):
        self.networks, self.modules = dict(networks), dict(networks)
        self.adapters, self._adapters, self.num_calls = adapters.roles if adapters else frozenset(), adapters, 0
        self._active: Role | None = None

    @contextmanager
    def use(self, role: Role) -> Iterator[nn.Module]:
        """Yield the network that plays `role`. Raises KeyError for an unknown role."""
        self.num_calls += 1
        with self._as(role):
            yield self.networks[role]

    def parameters(self, role: Role) -> dict[str, nn.Parameter]:
        """What an update of `role` changes, by name without the role's own; nothing for the teacher."""
        named = {} if role == "teacher" else dict(self.modules[role].named_parameters())
        if self._adapters is None or role not in self.adapters:
            return named
        return {own: p for name, p in named.items() if (own := self._adapters.own_name(name, role)) is not None}

    def as_now(self) -> AbstractContextManager[None]:
        """Enter it, as often as needed, to compute with the adapter that is active now."""
        return _Switch(self, self._active)

    def _as(self, role: Role) -> "_Switch":
        # A role with a network of its own leaves the adapters on the teacher's alone.
        shares = role in self.adapters or role == "teacher"
        return _Switch(self, (role if role in self.adapters else None) if shares else self._active)

    def _activate(self, role: Role | None) -> None:
        if self._adapters and role != self._active:
            self._adapters.activate(role)
        self._active = role


class _Switch(AbstractContextManager):
    """Within it the adapter of `role` is active, None for no adapter; after it the one that was active before.

    It can be entered again: a checkpointed block does so in every backward pass through it.
    """

    def __init__(self, roles: Roles, role: Role | None):
        self.roles, self.before = roles, []
        self.role: Role | None = role

    def __enter__(self) -> None:
        self.before.append(self.roles._active)
        self.roles._activate(self.role)

    def __exit__(self, *error) -> None:
        self.roles._activate(self.before.pop())
