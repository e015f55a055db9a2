"""The exponential moving average of the student's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Average of a network's parameters in fp32: average <- decay average + (1 - decay) parameter.

    It starts at the parameters it is made from. Buffers are not averaged.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.average = {name: p.detach().float().clone() for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take the network's present parameters into the average."""
        for name, parameter in network.named_parameters():
            self.average[name].lerp_(parameter.float(), 1 - self.decay)

    def state_dict(self, network: nn.Module) -> dict[str, Tensor]:
        """The network's state with averaged parameters."""
        return network.state_dict() | self.average

    def load(self, average: dict[str, Tensor]) -> None:
        """Take back what `average` held. Raises ValueError when names differ."""
        if set(average) != set(self.average):
            raise ValueError("the stored moving average belongs to another network")
        for name, value in average.items():
            self.average[name].copy_(value)

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Within the block the network computes with the average; afterwards its own weights are back, bit by bit."""
        parameters = dict(network.named_parameters())
        own = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            try:
                for name, p in parameters.items():
                    p.copy_(self.average[name])
                yield
            finally:
                for name, p in parameters.items():
                    p.copy_(own[name])
