"""Build the parts of a run before its first update, in the order that memory and checks require."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpdmd.data.embeddings import EmbeddingCache
from dpdmd.data.images import images_digest
from dpdmd.data.prompts import lint_prompts, source_prompts, training_pairs
from dpdmd.distributed.processes import new_accelerator, on_all_processes, on_main_process, require_equal
from dpdmd.method.denoiser import Encode
from dpdmd.method.roles import Role, Roles
from dpdmd.method.rollout import GuidedTeacher
from dpdmd.models.base import ModelAdapter, encoded
from dpdmd.models.identity import part_identities, start_identity
from dpdmd.models.parts import tokenizers
from dpdmd.models.quantised import missing_package
from dpdmd.recipe.plan import Plan
from dpdmd.store.cache import cache_folder
from dpdmd.store.provenance import versions
from dpdmd.training.adversary import Adversary, RealSamples, image_samples, teacher_samples
from dpdmd.training.data import BatchSource, EncodedPrompts, MicroBatch, prompts_digest
from dpdmd.training.ema import Ema
from dpdmd.training.networks import new_roles, role_denoiser
from dpdmd.training.run.folder import binding_digest
from dpdmd.training.run.identity import BY_CONTENT
from dpdmd.training.teacher_samples import TeacherSamples, samples_folder, teacher_identity
from dpdmd.training.updater import Trained, Updater
from dpdmd.training.updates import Denoisers
from dpdmd.training.validation.images import default_prompts
from dpdmd.training.validation.validator import Validator
from dpdmd.vision.perceptual import SCENES
from dpdmd.vision.weights import weights_digest
from dpdmd.world.find import WORLDS


@dataclass(frozen=True)
class Parts:
    """Everything that a trainer works with.

    teacher_samples: the teacher's samples of a pool of pairs; None without a pool. networks: networks in addition to
    those of the roles (a discriminator's head, a perceptual backbone), by name. identity: what a checkpoint must share
    with the run that continues from it. notes: warnings for the user.
    """

    adapter: ModelAdapter
    accelerator: Accelerator
    roles: Roles
    denoisers: Denoisers
    teacher: GuidedTeacher
    updaters: dict[Trained, Updater]
    ema: Ema | None
    batches: BatchSource
    adversary: Adversary | None
    teacher_samples: TeacherSamples | None
    validator: Validator
    networks: dict[str, nn.Module]
    identity: dict[str, Any]
    notes: list[str]


def build_parts(plan: Plan, adapter: ModelAdapter, accelerator: Accelerator | None = None) -> Parts:
    """The parts of a run. accelerator: default `new_accelerator()`.

    Raises ValueError before the model is loaded for settings that this machine cannot provide, and in all processes
    when their recipes, prompts, packages or models differ.
    """
    if (missing := missing_package(plan.teacher.dtype)) is not None:
        raise ValueError(missing)
    pairs = training_pairs(plan.data.prompts, plan.data.column, plan.data.negative_column)
    prompts, negatives = [prompt for prompt, _ in pairs], [plan.teacher.negative(own) for _, own in pairs]
    notes = list(plan.notes)
    for source, _ in plan.data.prompts:
        if source not in WORLDS:
            own = source_prompts(source, plan.data.column)
            notes += lint_prompts(own, tokenizers(adapter.texts, adapter.token_limits))
    accelerator = accelerator or new_accelerator()
    drawn = list(plan.validation.prompts or default_prompts(prompts))
    away = dict(zip(prompts, negatives, strict=True))
    drawn_away = [away.get(prompt, plan.teacher.negative_prompt) for prompt in drawn]
    validator = Validator(plan, adapter, accelerator, drawn, drawn_away)
    images_hash = {"images_hash": images_digest(plan.real_images) if plan.real_images else None}
    # Their places may differ between machines: what is there is compared, here and in `networks.new_roles`.
    named = {key: value is not None if key in BY_CONTENT else value for key, value in plan.settings.items()}
    content = {"the prompts": prompts_digest(prompts, negatives)} | images_hash
    require_equal({**named, **content, **versions()})
    # Before the networks are loaded: text encoders and autoencoder may need the memory.
    texts = [*prompts, *drawn, *(prompt for _, prompt in plan.real_images)]
    encode = text_encoder(plan, adapter, accelerator, texts, [*negatives, *drawn_away])
    encoded = EncodedPrompts(prompts, encode, negatives)
    images = image_samples(plan, adapter, accelerator) if plan.real_images else None
    roles = new_roles(plan, adapter, accelerator)
    of_role = partial(role_denoiser, plan, adapter, roles)
    denoisers = Denoisers(student=of_role("student"), teacher=of_role("teacher"), fake_score=of_role("fake_score"))
    teacher = GuidedTeacher(denoisers.teacher, plan.path, plan.teacher.grid, plan.teacher.guidance)
    batches = new_batches(plan, encoded, accelerator)
    kept = partial(new_teacher_samples, plan, adapter, teacher)
    updaters = _role_updaters(plan, roles, accelerator)
    networks = {term.name: term.network for term in plan.objective.terms if term.network is not None}
    adversary = None
    if plan.objective.discriminator is not None:
        draw = partial(_real_samples, plan, batches, teacher, kept, accelerator, images)
        adversary = Adversary(plan, adapter, roles, encoded, accelerator, draw)
        denoisers = replace(denoisers, discriminator=adversary.discriminator)
        networks["discriminator"] = head = adversary.discriminator.head
        parameters, rate = dict(head.named_parameters()), plan.objective.discriminator.learning_rate
        args = adversary.network, parameters, accelerator, plan.optimiser, rate
        updaters["discriminator"] = Updater("discriminator", *args)
    return Parts(
        adapter=adapter,
        accelerator=accelerator,
        roles=roles,
        denoisers=denoisers,
        teacher=teacher,
        updaters=updaters,
        ema=Ema(roles.parameters("student"), plan.optimiser.ema_decay) if plan.optimiser.ema_decay else None,
        batches=batches,
        adversary=adversary,
        teacher_samples=kept() if plan.objective.num_pairs else None,
        validator=validator,
        networks=networks,
        identity={
            "prompts_hash": encoded.digest,
            "samples_per_update": plan.data.batch_size * plan.data.accumulation * accelerator.num_processes,
            **images_hash,
            **on_main_process(lambda: _identity(plan, adapter)),
        },
        notes=notes,
    )


def _identity(plan: Plan, adapter: ModelAdapter) -> dict[str, Any]:
    """The settings that bind a run and the content of the networks it reads, for `run.identity.differences`."""
    start, is_lora = plan.student.start, "student" in plan.lora.roles
    compared = plan.settings["objective.perceptual.backbone"]
    uses_backbone = plan.objective_name == "dmd_perceptual" and compared != SCENES
    return {
        "settings_hash": binding_digest(plan.settings),
        "teacher_parts": part_identities(adapter.source),
        "start": start and {"name": start, "sha256": start_identity(start, is_lora=is_lora)},
        "backbone_hash": weights_digest(compared) if uses_backbone else None,
    }


def text_encoder(
    plan: Plan, adapter: ModelAdapter, accelerator: Accelerator, texts: list[str], negatives: list[str]
) -> Encode:
    """The function from texts to conditioning: a cache, filled here with the (negative) texts, or the text encoders.

    With a cache the text encoders are released, because the networks need their memory.
    """
    device = accelerator.device
    if not plan.data.use_cache:
        if device.type != "cpu":
            adapter.texts.to(device)
        return partial(encoded, adapter)
    dtype = torch.bfloat16 if plan.compute.in_bf16 else torch.float32
    cache = EmbeddingCache(plan.data.cache or cache_folder("prompts"), adapter, dtype)

    def ensure() -> None:
        if device.type != "cpu" and (cache.missing(texts) or cache.missing(negatives, negative=True)):
            adapter.texts.to(device, dtype)
        # One that is shared goes alone, as without a cache, so that both are bitwise equal.
        cache.ensure(negatives, negative=True, progress=len(set(negatives)) > 1 and accelerator.is_main_process)
        cache.ensure(texts, progress=accelerator.is_main_process)

    on_main_process(ensure)
    on_all_processes(ensure)
    vars(adapter).pop("texts", None)
    return cache.condition


def new_batches(plan: Plan, prompts: EncodedPrompts, accelerator: Accelerator) -> BatchSource:
    """The micro-batches of this process; unless each fake-score update draws its own, there is one set per step."""
    data = plan.data
    return BatchSource(
        prompts=prompts,
        latent_shape=plan.latent_shape,
        seed=data.seed,
        batch_size=data.batch_size,
        accumulation=data.accumulation,
        fake_updates=1 if data.reuse_samples else data.fake_updates,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
        device=accelerator.device,
        samples_per_prompt=data.samples_per_prompt,
        num_pairs=plan.objective.num_pairs,
    )


def sample_teacher(teacher: GuidedTeacher, batch: MicroBatch) -> Tensor:
    """The guided teacher's x0 (B, C, H, W) from the noise of a micro-batch."""
    return teacher.rollout(batch.noise, batch.cond, batch.uncond)


def new_teacher_samples(plan: Plan, adapter: ModelAdapter, teacher: GuidedTeacher) -> TeacherSamples:
    """The teacher's samples of a pool of pairs, kept on disk."""
    memo = Path(plan.data.cache) if plan.data.cache else None
    identity = on_main_process(lambda: teacher_identity(plan, adapter, memo))
    sample, on_any = partial(sample_teacher, teacher), lambda flag: any(on_all_processes(lambda: flag))
    return TeacherSamples(samples_folder(plan.data.cache), identity, sample, on_any)


def _role_updaters(plan: Plan, roles: Roles, accelerator: Accelerator) -> dict[Trained, Updater]:
    rates: dict[Role, float] = {
        "student": plan.optimiser.learning_rate,
        "fake_score": plan.optimiser.fake_learning_rate,
    }
    return {
        role: Updater(role, roles.networks[role], roles.parameters(role), accelerator, plan.optimiser, rate)
        for role, rate in rates.items()
    }


def _real_samples(
    plan: Plan,
    batches: BatchSource,
    teacher: GuidedTeacher,
    kept: Callable[[], TeacherSamples],
    accelerator: Accelerator,
    images: RealSamples | None,
) -> RealSamples:
    """The real samples of a discriminator: the images, or samples of the teacher."""
    if images is not None:
        return images
    sample = kept() if plan.data.use_cache else partial(sample_teacher, teacher)
    return teacher_samples(plan, batches, sample, accelerator)
