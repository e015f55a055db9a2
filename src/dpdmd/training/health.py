"""Statistics of samples that show early whether a run goes wrong, weights that are not finite, means over batches."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

SATURATED = 3.0


@torch.no_grad()
def sample_health(x0: Tensor) -> dict[str, Tensor]:
    """Scalars `mean`, `std` and `saturation` of the student's samples x0 (B, C, H, W).

    saturation: share of values with |x| > 3. Latents are scaled to about unit variance by every family, so this is
    the share beyond three standard deviations of the data; 0.0027 for a normal distribution.
    """
    x0 = x0.float()
    return {
        "mean": x0.mean(),
        "std": x0.std(correction=0),
        "saturation": (x0.abs() > SATURATED).float().mean(),
    }


def first_non_finite(network: nn.Module) -> str | None:
    """The name of the first weight with a value that is not finite, None if there is none; of a shard its own part."""
    for name, parameter in network.named_parameters():
        values = parameter.detach()
        values = values.to_local() if isinstance(values, DTensor) else values
        if type(values) in (Tensor, nn.Parameter) and values.is_floating_point() and not values.isfinite().all():
            return name
    return None


def mean_of(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each key over rows of equal keys, whose values are scalars on one device; they stay there."""
    values = torch.stack([torch.stack([value.float() for value in row.values()]) for row in rows])
    return dict(zip(rows[0], values.mean(dim=0).unbind(), strict=True))


def on_cpu(values: dict[str, Tensor]) -> dict[str, float]:
    """Scalars on one device as numbers, in one copy, for which the CPU waits until they are computed."""
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
