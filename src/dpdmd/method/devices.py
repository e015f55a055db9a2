"""From the CPU, where everything random is drawn, to the device that computes."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; the CPU goes on at once, and what it queues next waits for the copy.

    A GPU can only copy on its own from pinned memory: from other memory it makes the CPU wait.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
