"""Peak memory of an update, found by running one on torch's meta device.

Its tensors have shapes but no data, so that a network of any size runs in seconds and without memory; `LiveBytes`
counts the bytes alive at any moment, as an allocator without fragmentation would.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import cache, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dpdmd.method.denoiser import Condition, concatenate
from dpdmd.method.paths import Prediction
from dpdmd.method.roles import Role, Roles
from dpdmd.method.rollout import renoise_by
from dpdmd.models.base import ModelAdapter, empty_network, feature_reader
from dpdmd.models.base import denoiser as role_denoiser
from dpdmd.models.lora import lora_configs
from dpdmd.models.quantised import PACKAGES as QUANTISED
from dpdmd.models.quantised import block_layers
from dpdmd.models.role_networks import enable_gradient_checkpointing, make_roles
from dpdmd.models.sampling import student_rollout
from dpdmd.recipe.plan import Plan

META = torch.device("meta")
# Functions that torch.autocast computes in bf16 and in fp32 on a GPU, as far as denoising networks use them.
IN_BF16 = {F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.baddbmm}
IN_BF16 |= {Tensor.matmul, Tensor.__matmul__, Tensor.bmm}
IN_FP32 = {F.layer_norm, F.group_norm, F.rms_norm, F.interpolate, F.softmax, torch.softmax, Tensor.softmax}
IN_FP32 |= {torch.rsqrt, Tensor.rsqrt, torch.pow, Tensor.pow, Tensor.__pow__, torch.exp, Tensor.exp}


class LiveBytes(TorchDispatchMode):
    """Within the block, `peak` is the largest number of bytes that tensors made in it have held at a time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._mine: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        result = self._run(func, args, kwargs)
        for tensor in _tensors((result,)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._mine and not _came_in(storage, args, kwargs):
                self._count(storage)
        return result

    def _run(self, func: Any, args: tuple, kwargs: dict) -> Any:
        return func(*args, **kwargs)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def free(_) -> None:
            self.now -= size
            del self._mine[key]

        self._mine[key] = weakref.ref(storage, free)
        self.now += size
        self.peak = max(self.peak, self.now)


class LiveShapes(LiveBytes):
    """The same for tensors of the meta device, faster, and also with real tensors among them.

    A meta operation takes up to a millisecond to find the shape of its result; here it runs once for arguments of the
    same shapes. Operations on real tensors alone are computed, since some networks read values from masks; a real
    tensor combined with a meta tensor counts as a meta tensor.
    """

    def __init__(self):
        super().__init__()
        self._blueprints: dict[tuple, Any] = {}

    def _run(self, func: Any, args: tuple, kwargs: dict) -> Any:
        given = list(_tensors((*args, *kwargs.values())))
        if not any(tensor.is_meta for tensor in given):
            return func(*args, **kwargs)
        if not all(tensor.is_meta for tensor in given):
            args, kwargs = _on_meta(args), _on_meta(kwargs)
        if _aliases(func):
            return func(*args, **kwargs)
        key = func, _key(args), _key(kwargs)
        if key not in self._blueprints:
            self._blueprints[key] = _blueprint(func(*args, **kwargs))
        return _build(self._blueprints[key])


class AsOnGpu(TorchFunctionMode):
    """Makes the meta device compute as a GPU does: with autocast, and attention without its matrix.

    By itself the meta device ignores autocast, and its attention needs memory quadratic in the number of tokens.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        dtype = torch.bfloat16 if func in IN_BF16 else torch.float32 if func in IN_FP32 else None
        if dtype is not None and torch.is_autocast_enabled("cpu"):
            args, kwargs = _cast(args, dtype), _cast(kwargs, dtype)
        return (_attention if func is F.scaled_dot_product_attention else func)(*args, **kwargs)


def _attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
) -> Tensor:
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # keeps the same tensors as the kernels of a GPU
    return flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return _mapped(lambda item: _cast(item, dtype), value)


class Blueprint(NamedTuple):
    """The description of a tensor without data."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def _tensors(values: Iterable) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _mapped(function: Callable, value: Any) -> Any:
    """`function` of every item of a list, tuple or dictionary; any other value is returned unchanged."""
    if isinstance(value, dict):
        return {name: function(item) for name, item in value.items()}
    return type(value)(map(function, value)) if type(value) in (list, tuple) else value


def _came_in(storage: torch.UntypedStorage, args: tuple, kwargs: dict) -> bool:
    """Whether the result is a view of an argument, or an argument that was written to."""
    return any(t.untyped_storage()._cdata == storage._cdata for t in _tensors((*args, *kwargs.values())))


@cache
def _aliases(func: Any) -> bool:
    """Whether an operation returns views or writes into its arguments."""
    schema = func._schema
    return any(value.alias_info is not None for value in (*schema.arguments, *schema.returns))


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(META) if value.ndim else value  # a single number may stay on the CPU
    return _mapped(_on_meta, value)


def _key(value: Any) -> Any:
    """What the shapes of an operation's results can depend on; 1 and 1.0 differ."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in value.items())
    return type(value), value


def _blueprint(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Blueprint(value.shape, value.stride(), value.dtype)
    return _mapped(_blueprint, value)


def _build(value: Any) -> Any:
    if isinstance(value, Blueprint):
        return torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device=META)
    return _mapped(_build, value)


def peak_bytes(plan: Plan, adapter: ModelAdapter) -> int:
    """Peak bytes of activations and gradients, of the update that needs more, on the main device.

    The student's update holds the rollout with its graph, a guided call of the teacher or a discriminator's features
    with their own graph, then the backward pass; with accumulation also the gradients of the previous micro-batch.
    Weights, moments and text encoders are not counted, nor a discriminator's head and a perceptual term's images.
    """
    roles, noise, cond = blank_call(plan, adapter, batch_size=plan.data.batch_size)
    uncond = _without_data(adapter.blank_condition(plan.data.batch_size))
    grid = plan.student.grid

    def in_precision() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=plan.compute.in_bf16)

    def denoise(role: Role, x_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        with in_precision():
            return role_denoiser(adapter, roles, role, plan.embedded_guidance[role])(x_t, t, condition)

    def look(x0: Tensor) -> None:
        """The adversarial term: features with a separate graph, normalised as by its head, and the gradient to x0."""
        discriminator = plan.objective.discriminator
        assert discriminator is not None, "only a discriminator has feature blocks"
        role, x_t = discriminator.features, x0.detach().requires_grad_()
        read = feature_reader(adapter, roles, role, plan.feature_blocks, plan.embedded_guidance[role])
        with in_precision():
            features = [f.float() for f in read(x_t, grid.time(0, x_t), cond)]
        torch.autograd.grad(_sum(F.layer_norm(f, f.shape[-1:]).square().mean() for f in features), x_t)

    def student_update() -> None:
        rollout = student_rollout(
            partial(denoise, "student"),
            adapter.path,
            noise,
            cond,
            grid=grid,
            detach_first=plan.objective.detach_first,
            last_steps=[grid.num_steps] * len(noise) if plan.student.is_simulated else None,
            renoise=renoise_by(plan.student.kind, grid, lambda: torch.randn_like(noise)),
        )
        with torch.no_grad():  # the largest call without graph: guided, both halves at once
            copies = plan.teacher.guidance.num_forwards
            times, both = plan.teacher.grid.time(0, noise).repeat(copies), concatenate([cond, uncond][:copies])
            denoise("teacher", noise.repeat(copies, 1, 1, 1), times, both)
        if plan.feature_blocks:
            look(rollout.x0)
        predicted = [rollout.x0] if rollout.first is None else [rollout.x0, rollout.first.x0]
        _sum(x0.mean() for x0 in predicted).backward()

    def fake_score_update() -> None:
        denoise("fake_score", noise, grid.time(0, noise), cond).x0.mean().backward()

    def peak(role: Role, micro_batch: Callable[[], None]) -> int:
        with AsOnGpu(), LiveShapes() as live:
            if plan.data.accumulation > 1:
                for parameter in roles.parameters(role).values():
                    parameter.grad = torch.empty_like(parameter)
            micro_batch()
        return live.peak

    peaks = [peak("student", student_update)]
    if "student" in roles.adapters and "fake_score" not in roles.adapters:
        peaks.append(peak("fake_score", fake_score_update))  # fewer activations and larger gradients
    return max(peaks)


def blank_call(plan: Plan, adapter: ModelAdapter, *, batch_size: int) -> tuple[Roles, Tensor, Condition]:
    """What a network call needs, without data: roles, noise (B, C, H, W), conditioning of the longest prompts."""
    noise = torch.randn(batch_size, *plan.latent_shape, device=META)
    return _roles_without_data(plan, adapter), noise, _without_data(adapter.blank_condition(batch_size))


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    return cast(Tensor, sum(tensors))  # of one or more


def _roles_without_data(plan: Plan, adapter: ModelAdapter) -> Roles:
    network, dtype = empty_network(adapter), plan.teacher.dtype
    configs = lora_configs(plan.lora, adapter, network)
    if dtype in QUANTISED:
        _stand_in(network, dtype, adapter.block_lists)
    with META:
        roles = make_roles(network, lora=configs, frozen_dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
    if plan.compute.recomputes:
        # Recomputed blocks need the mode too: in a backward pass function modes are off.
        enable_gradient_checkpointing(roles, adapter.block_lists, plan.compute.num_recomputed, on_gpu)
    return roles


def on_gpu(block: Callable) -> Callable:
    """A block that computes as on a GPU (`AsOnGpu`), wherever it is called from."""

    def call(*args) -> Any:
        with AsOnGpu():
            return block(*args)

    return call


def picture_bytes(plan: Plan, adapter: ModelAdapter) -> int:
    """Bytes of the autoencoder and its peak when decoding one image, for validation; 0 without validation."""
    if not plan.validation.every:
        return 0
    blank, latents = blank_autoencoder(plan, adapter)
    with AsOnGpu(), torch.no_grad(), LiveShapes() as live:
        blank.decode(latents)
    return sum(p.nbytes for p in blank.vae.parameters()) + live.peak


def blank_autoencoder(plan: Plan, adapter: ModelAdapter) -> tuple[ModelAdapter, Tensor]:
    """The adapter with an autoencoder on the meta device, and the latents of one image there."""
    blank = copy(adapter)
    with META:
        blank.vae = adapter.vae_class.from_config(adapter.vae_config)
    return blank, torch.empty(1, *plan.latent_shape, device=META)


def _stand_in(network: nn.Module, dtype: str, block_lists: tuple[str, ...]) -> None:
    """Layers that need the memory of quantised ones: a bf16 weight while they compute, and for int8 until backward."""
    nn.Module.to(network, torch.bfloat16)
    for _, layer in block_layers(network, block_lists):
        layer.weight = nn.Parameter(torch.empty(layer.weight.shape, dtype=torch.int8, device=META), requires_grad=False)
        product = _int8_linear if dtype == "int8" else _linear_of_codes
        layer.forward = partial(product, layer)  # pyright: ignore[reportAttributeAccessIssue]  # blocks call it by position


def _int8_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    product = F.linear(x.to(torch.bfloat16), layer.weight.to(torch.bfloat16))
    return product * torch.empty(len(layer.weight), dtype=product.dtype, device=META)


def _linear_of_codes(layer: nn.Linear, x: Tensor) -> Tensor:
    return _ProductOfCodes.apply(x.to(torch.bfloat16), layer.weight)


class _ProductOfCodes(torch.autograd.Function):
    """x W^T; the weight is converted to bf16 for it, and again in the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight.to(torch.bfloat16))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.weight.to(torch.bfloat16), None


def _without_data(cond: Condition) -> Condition:
    """On the meta device, except for masks, whose values matter."""
    return Condition({name: t.to(META) if t.is_floating_point() else t for name, t in cond.tensors.items()})
