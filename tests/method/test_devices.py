"""How what is drawn on the CPU gets to the device."""

import torch

from dpdmd.method.devices import to_device


class Recorded:
    """Stands for a tensor and notes how it is moved; there need not be a GPU."""

    def __init__(self, device: str):
        self.device, self.moves = torch.device(device), []

    def pin_memory(self):
        self.moves.append("pinned")
        return self

    def to(self, device, non_blocking=False):
        self.moves.append((device.type, non_blocking))
        return self


def test_a_gpu_copies_from_pinned_memory_while_the_cpu_goes_on():
    drawn = Recorded("cpu")
    to_device(drawn, torch.device("cuda"))
    assert drawn.moves == ["pinned", ("cuda", True)]


def test_what_is_on_the_gpu_or_stays_on_the_cpu_is_not_pinned():
    for at, to in (("cuda", "cuda"), ("cpu", "cpu"), ("cpu", "meta")):
        tensor = Recorded(at)
        to_device(tensor, torch.device(to))
        assert tensor.moves == [(to, False)]
