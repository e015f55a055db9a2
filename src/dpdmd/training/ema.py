"""Weights that follow others: the moving average of the student, and the fake score's alignment to it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Ema:
    """Average of named parameters in fp32: average <- decay average + (1 - decay) parameter.

    It starts at the current parameters.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float):
        self.parameters, self.decay = parameters, decay
        self.average = {name: p.detach().float().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current parameters."""
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.float(), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the parameters hold the average; afterwards their own values are restored exactly."""
        parameters = self.parameters
        own = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            try:
                for name, p in parameters.items():
                    p.copy_(self.average[name])
                yield
            finally:
                for name, p in parameters.items():
                    p.copy_(own[name])


@torch.no_grad()
def align(fake_score: dict[str, nn.Parameter], student: dict[str, nn.Parameter], decay: float) -> None:
    """fake score <- decay fake score + (1 - decay) student (implicit distribution alignment, arXiv 2506.00523).

    The student's samples change with its weights; a fake score that takes part of the change lags less behind them.
    Both must have parameters of the same names.
    """
    for name, parameter in fake_score.items():
        parameter.lerp_(student[name], 1 - decay)
