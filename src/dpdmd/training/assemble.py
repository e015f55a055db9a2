"""What a run is put together from before its first update: encoded texts, networks in their roles, denoisers."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpdmd.data.embeddings import EmbeddingCache, default_folder
from dpdmd.distributed.processes import everywhere, on_first, require_equal
from dpdmd.distributed.wrapping import replicate, shard
from dpdmd.method.denoiser import Condition, Denoiser
from dpdmd.method.paths import Prediction
from dpdmd.method.roles import TRAINED_ROLES, Role, Roles
from dpdmd.models.base import ModelAdapter, denoiser
from dpdmd.models.load import load_sampler
from dpdmd.models.lora import lora_configs
from dpdmd.models.quantised import PACKAGES as QUANTISED
from dpdmd.models.quantised import quantise
from dpdmd.recipe.resolve import Plan
from dpdmd.recipe.schema import NO_CACHE, Recipe
from dpdmd.store.digests import fingerprint
from dpdmd.training.data import BatchSource, EncodedPrompts


def text_encoder(
    recipe: Recipe, adapter: ModelAdapter, accelerator: Accelerator, texts: list[str], say: Callable[[str], None]
) -> Callable[[list[str]], Condition]:
    """What gives the conditioning of `texts` and of "": their cache, filled here, or the text encoders.

    With a cache the encoders are let go: their memory is the networks'.
    """
    device = accelerator.device
    if recipe.data.cache == NO_CACHE:
        if device.type != "cpu":
            adapter.texts.to(device)
        return adapter.encode
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    cache = EmbeddingCache(recipe.data.cache or default_folder(), adapter, dtype)

    def ensure() -> None:
        if device.type != "cpu" and cache.missing([*texts, ""]):
            adapter.texts.to(device, dtype)
        cache.ensure([""], progress=False)  # alone, as without a cache: equal to the bit
        cache.ensure(texts, progress=accelerator.is_main_process)

    on_first(ensure)
    everywhere(ensure)
    vars(adapter).pop("texts", None)
    return cache.condition


def load_networks(recipe: Recipe, adapter: ModelAdapter) -> tuple[nn.Module, nn.Module | None]:
    """The teacher's network, and the one that the student starts from, None for the teacher's.

    Raises ValueError when they do not fit each other.
    """
    source, dtype = recipe.student.start, recipe.model.dtype
    # What is only ever frozen need not pass through fp32.
    is_frozen = dtype != "fp32" and set(recipe.lora.roles) == set(TRAINED_ROLES)
    teacher = adapter.load_network(torch.bfloat16) if is_frozen else adapter.load_network()
    if source is None:
        return teacher, None
    start = load_sampler(source).network
    mine, theirs = ({k: tuple(v.shape) for k, v in network.state_dict().items()} for network in (teacher, start))
    differ = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if differ:
        raise ValueError(
            f"student.start: {source} does not fit the teacher {adapter.source}: {len(differ)} weights differ in name "
            f"or shape, the first is {differ[0]}"
        )
    return teacher, start


def new_roles(recipe: Recipe, adapter: ModelAdapter, accelerator: Accelerator) -> Roles:
    """Student, teacher and fake score on this process's device, copied or spread over the processes.

    Raises ValueError in all processes when they read different weights.
    """
    teacher, start = load_networks(recipe, adapter)
    require_equal({name: fingerprint(n) for name, n in {"teacher": teacher, "student.start": start}.items() if n})
    dtype = recipe.model.dtype
    if dtype in QUANTISED:
        quantise(teacher, dtype, adapter.block_lists, accelerator.device)
    roles = Roles(
        teacher,
        start,
        lora=lora_configs(recipe.lora, adapter, teacher),
        frozen_dtype=torch.bfloat16 if dtype == "bf16" else torch.float32,
        seed=recipe.train.seed,
    )
    if recipe.train.gradient_checkpointing:
        roles.enable_gradient_checkpointing()
    if recipe.train.compile:
        roles.compile_blocks(adapter.block_lists)
    if recipe.train.shard:
        shard(roles, accelerator, adapter.block_lists)
    else:
        replicate(roles, accelerator)
    return roles


def role_denoiser(recipe: Recipe, plan: Plan, adapter: ModelAdapter, roles: Roles, role: Role) -> Denoiser:
    """The role's denoiser; in bf16 the network call alone is autocast, its prediction is fp32."""
    denoise = denoiser(adapter, roles, role, plan.embedded_guidance[role])
    if recipe.train.precision == "fp32":
        return denoise

    def in_bf16(x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        with torch.autocast(x_t.device.type, dtype=torch.bfloat16):
            return denoise(x_t, t, cond)

    return in_bf16


def new_batches(recipe: Recipe, plan: Plan, prompts: EncodedPrompts, accelerator: Accelerator) -> BatchSource:
    """What this process draws; shared samples are those of one fake-score update."""
    train = recipe.train
    return BatchSource(
        prompts=prompts,
        latent_shape=plan.latent_shape,
        seed=train.seed,
        batch_size=train.batch_size,
        accumulation=train.accumulation,
        fake_updates=1 if train.reuse_samples else train.fake_updates,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
        device=accelerator.device,
        samples_per_prompt=train.samples_per_prompt,
        num_pairs=recipe.objective.num_pairs,
    )
