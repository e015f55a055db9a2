"""The adapter contract: everything that differs between model families, and nothing else.

An adapter translates between our conventions and those of its family: the sign of the prediction, the time scale, and
the packing and folding of tokens. All other code sees only latents `x_t` (B, C, H, W), times `t` in [0, 1],
`Condition` and `Prediction`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from dpdmd.method.denoiser import Condition, Denoiser
from dpdmd.method.discriminator import Features, block_outputs
from dpdmd.method.grids import Grid
from dpdmd.method.guidance import GuidanceRule
from dpdmd.method.losses import Space
from dpdmd.method.paths import Path, Prediction
from dpdmd.method.roles import Role, Roles
from dpdmd.method.rollout import StudentKind
from dpdmd.models.student_file import BaseLora
from dpdmd.store.errors import library_errors

LatentShape = tuple[int, int, int]
RENEW_NOISE = "renew_noise"  # what `renewal_code` defines
CALLBACK = "callback_on_step_end"


class ModelAdapter(Protocol):
    """A family of text-to-image models, loaded from a diffusers pipeline folder or hub id.

    Constructing an adapter reads JSON files only. Each component is loaded when it is first needed: the text encoders
    by `encode`, the autoencoder by `decode`, the denoising network by `load_network`.

    source: the pipeline folder or hub id.
    loras: LoRAs that `load_network` merges into the network, so that both are the teacher.
    pipeline_class: the stock pipeline that samples an exported student.
    network_class, network_name: class and component name ("transformer", "unet") of the denoising network.
    network_config: configuration of the denoising network.
    vae_class, vae_config: class and configuration of the autoencoder.
    path: how clean latents and noise are mixed, and the conversions between predictions.
    prediction_space: what the network predicts: "velocity", "eps" or "v".
    guidance_scale, num_inference_steps: the teacher's sampling defaults.
    guidance_rule: how conditional and unconditional predictions are combined.
    embedded_guidance: default guidance input of a guidance-distilled network; None if the network has no such input.
    stored_dtype: the dtype of the denoising network's weights on disk.
    texts: the stock pipeline with only its tokenizers and text encoders.
    vae: the autoencoder, on the CPU until it is moved.
    token_limits: (tokenizer name, maximum number of tokens) for each text encoder, including the family's prompt
        template; None means the tokenizer's own maximum.
    lora_targets: names of the modules that receive a LoRA by default.
    block_lists: names of the network's attributes that hold its blocks.
    feature_lists: names of the attributes (a block or a list of blocks) that process image tokens, in calling order.
    vae_factor: pixels per latent pixel along each side.
    callback: the argument of the stock call that takes what `renewal_code` defines; None if there is none, so that no
        student is of kind "renoise_last".
    exported_options: what the model_index.json of an exported student says otherwise than its base's.
    notes: what a teacher does otherwise than the saved pipeline, in words.
    """

    source: str
    loras: tuple[BaseLora, ...]
    pipeline_class: type
    network_class: type
    network_name: str
    network_config: dict[str, Any]
    vae_class: type
    vae_config: dict[str, Any]
    path: Path
    prediction_space: Space
    guidance_scale: float
    num_inference_steps: int
    guidance_rule: GuidanceRule
    embedded_guidance: float | None
    stored_dtype: torch.dtype
    texts: Any
    vae: nn.Module
    token_limits: tuple[tuple[str, int | None], ...]
    lora_targets: tuple[str, ...]
    block_lists: tuple[str, ...]
    feature_lists: tuple[str, ...]
    vae_factor: int
    callback: str | None
    exported_options: Mapping[str, Any]
    notes: list[str]

    def latent_shape(self, height: int | None = None, width: int | None = None) -> LatentShape:
        """(C, H, W) of the latents of one image of `height` x `width` pixels (default: the model's own size).

        Raises ValueError if a side is not divisible by the autoencoder's factor times the network's patch size.
        """
        ...

    def load_network(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Load a new copy of the pretrained denoising network, with `loras` merged into it, ready for `predict`."""
        ...

    def network_files(self) -> list[FilePath]:
        """The safetensors files with the network's weights, under the network's own names."""
        ...

    def blank_network(self) -> nn.Module:
        """The network that `load_network` gives, with its parameters on the meta device and its tables computed."""
        ...

    def encode(self, prompts: list[str]) -> Condition:
        """Encode prompts exactly as the stock pipeline does; returns CPU tensors. "" is the unconditional prompt."""
        ...

    def encode_negative(self, prompts: list[str]) -> Condition:
        """Encode negative prompts exactly as the stock pipeline does; of "", the same as `encode`."""
        ...

    @property
    def takes_negative_prompt(self) -> bool:
        """Whether the stock pipeline has a negative prompt."""
        ...

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros in the shapes of the longest possible encoded prompts, no token masked; used to estimate memory."""
        ...

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """Predict x0 and eps from x_t (B, C, H, W) at t (B,) in [0, 1]; returned in fp32.

        embedded_guidance: guidance input of a guidance-distilled network; default: the adapter's own.
        """
        ...

    def picture_tokens(self, output: Any, x_t: Tensor, cond: Condition) -> Tensor:
        """Extract the image tokens (B, N, D) from the output of a block in `feature_lists`, called at x_t (B, C, H, W).

        N is the number of positions in the image.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, H, W) to images (B, 3, vae_factor H, vae_factor W) in [-1, 1].

        The images are not clamped, and gradients flow back to the latents.
        """
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [-1, 1] to their most likely latents, the inverse of `decode`."""
        ...

    def stock_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """The stock pipeline's default grid for this number of steps and latent size."""
        ...

    def uniform_grid(
        self, num_steps: int, latent_shape: LatentShape | None = None, *, shift: float | None = None
    ) -> Grid:
        """The grid that is uniform in the model's own time before its time shift, so that every call counts.

        latent_shape: default: the model's own. shift: of a flow; default: the model's for this size.
        """
        ...

    def student_scheduler(self, kind: StudentKind, grid: Grid, latent_shape: LatentShape | None = None) -> Any:
        """The stock scheduler whose steps are exactly those that the student was trained with.

        A `uniform_grid` is drawn by `num_inference_steps` alone.
        """
        ...

    def sized_scheduler(self, kind: StudentKind, grids: Mapping[LatentShape, Grid]) -> Any:
        """The stock scheduler of a student that was trained at several sizes, on a grid at each.

        With it `num_inference_steps` alone draws each grid, where the grids differ. Raises ValueError if none does.
        """
        ...

    def sized_grid(self, grids: Mapping[LatentShape, Grid], latent_shape: LatentShape) -> Grid:
        """The grid of a student of `sized_scheduler` at any size."""
        ...

    def call_arguments(self, scheduler: Any, grid: Grid, embedded_guidance: float | None = None) -> dict[str, Any]:
        """Arguments with which the stock pipeline and its `student_scheduler` sample a student on `grid`, unguided.

        Raises ValueError for a grid that they cannot draw.
        """
        ...

    def renewal_code(self, num_steps: int) -> str:
        """Python code of RENEW_NOISE, the `callback` with which the stock pipeline draws a student of kind
        "renoise_last" on its `student_scheduler`, which by itself takes deterministic steps; `pipe` is the pipeline.
        """
        ...

    def lora_names(self, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        """A LoRA under the names by which both stock diffusers and ComfyUI know it.

        layers: "MODULE.lora_A.weight" (rank, in) and "MODULE.lora_B.weight" (out, rank) by the network's modules,
        applied as lora_B @ lora_A.
        """
        ...


def encoded(adapter: ModelAdapter, prompts: list[str], *, negative: bool = False) -> Condition:
    """`adapter.encode`, or `encode_negative` of negative prompts.

    Raises ValueError if tokenizers and text encoders do not fit, FloatingPointError for NaN.
    """
    with library_errors(f"{adapter.source}: its tokenizers and text encoders do not work together"):
        condition = adapter.encode_negative(prompts) if negative else adapter.encode(prompts)
    for name, tensor in condition.tensors.items():
        for prompt, row in zip(prompts, tensor, strict=True):
            if tensor.is_floating_point() and not row.isfinite().all():
                raise FloatingPointError(
                    f"{adapter.source}: its text encoders give {name} that are not finite for {prompt[:80]!r}: their "
                    "weights are broken"
                )
    return condition


def denoiser(adapter: ModelAdapter, roles: Roles, role: Role, embedded_guidance: float | None = None) -> Denoiser:
    """Build the denoiser of a role, which calls the role's network through `roles.use` and the family's adapter."""

    def denoise(x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        with roles.use(role) as network:
            return adapter.predict(network, x_t, t, cond, embedded_guidance)

    return fitting_parts(adapter, denoise)


def fitting_parts(adapter: ModelAdapter, call: Callable[..., Prediction]) -> Callable[..., Prediction]:
    """`call`, whose first use raises ValueError if the network does not take what the other parts give it."""
    is_first = True

    def checked(*args: Any) -> Prediction:
        nonlocal is_first
        if not is_first:
            return call(*args)
        with library_errors(f"{adapter.source}: its {adapter.network_name} does not fit its other parts"):
            result = call(*args)
        is_first = False
        return result

    return checked


def decoder(adapter: ModelAdapter, *, in_bf16: bool = False) -> Callable[[Tensor], Tensor]:
    """Build a function that decodes latents to fp32 images on the latents' device.

    The autoencoder is moved to that device and stays there. in_bf16: decode under bf16 autocast.
    """

    def decode(latents: Tensor) -> Tensor:
        adapter.vae.to(latents.device)
        in_its_dtype = torch.autocast(latents.device.type, torch.bfloat16, enabled=in_bf16)
        with library_errors(f"{adapter.source}: its vae does not fit its other parts"), in_its_dtype:
            return adapter.decode(latents).float()

    return decode


def empty_network(adapter: ModelAdapter) -> nn.Module:
    """Build the denoising network on the meta device, from its configuration only."""
    with torch.device("meta"):
        return cast("Any", adapter.network_class).from_config(adapter.network_config)


def network_blocks(network: nn.Module, block_lists: tuple[str, ...]) -> list[nn.Module]:
    """The blocks in these attributes of a network (`ModelAdapter.block_lists`), in order."""
    return [block for name in block_lists for block in getattr(network, name)]


def feature_blocks(adapter: ModelAdapter, network: nn.Module) -> list[nn.Module]:
    """The blocks of a network that process image tokens, in calling order."""
    parts = (getattr(network, name) for name in adapter.feature_lists)
    return [block for part in parts for block in (part if isinstance(part, nn.ModuleList) else [part])]


def feature_reader(
    adapter: ModelAdapter,
    roles: Roles,
    role: Role,
    indices: tuple[int, ...],
    embedded_guidance: float | None = None,
    *,
    whole_calls: bool = False,
) -> Features:
    """Build a function that returns the image tokens [(B, N, D), ...] after some of a role's `feature_blocks`.

    indices: positions of the blocks in `feature_blocks`.
    whole_calls: always run the whole network. By default, a call that records no graph stops after the last of the
    blocks.
    The network is called without its wrapper for several processes (DDP), because no update of it follows.
    """
    chosen = feature_blocks(adapter, roles.modules[role])

    def read(x_t: Tensor, t: Tensor, cond: Condition) -> list[Tensor]:
        with roles.use(role):
            outputs = block_outputs(
                lambda: adapter.predict(roles.modules[role], x_t, t, cond, embedded_guidance),
                [chosen[i] for i in indices],
                stop=not (whole_calls or torch.is_grad_enabled()),
            )
        return [adapter.picture_tokens(output, x_t, cond) for output in outputs]

    return read


def network_denoiser(adapter: ModelAdapter, network: nn.Module, embedded_guidance: float | None = None) -> Denoiser:
    """Build the denoiser of a single network, for sampling; it records no gradients.

    A network in bf16 or fp16 computes in its dtype where autocast does; latents and predictions stay in fp32.
    """
    dtype = next(network.parameters()).dtype

    def denoise(x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        with torch.no_grad(), torch.autocast(x_t.device.type, dtype, enabled=dtype != torch.float32):
            return adapter.predict(network, x_t, t, cond, embedded_guidance)

    return fitting_parts(adapter, denoise)
