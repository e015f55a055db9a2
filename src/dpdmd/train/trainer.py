"""The state of a run and its one iteration: M fake-score updates, then one student update."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import get_peft_model_state_dict
from torch import Tensor
from tqdm import tqdm

from dpdmd.data.embeddings import EmbeddingCache, default_folder
from dpdmd.data.images import images_digest
from dpdmd.data.prompts import SCENES, lint_prompts, training_prompts
from dpdmd.denoiser import Condition, Denoiser
from dpdmd.evaluate.features import FeatureExtractor, load_extractor
from dpdmd.files import write_json, write_tensors
from dpdmd.guidance import Guidance
from dpdmd.models.base import ModelAdapter, denoiser
from dpdmd.models.load import BUILT_IN, load_sampler
from dpdmd.models.lora import lora_configs, save_lora
from dpdmd.models.parts import tokenizers
from dpdmd.models.quantised import PACKAGES as QUANTISED
from dpdmd.models.quantised import missing_package, quantise
from dpdmd.objectives.perceptual import Perceptual
from dpdmd.paths import Prediction
from dpdmd.roles import TRAINED_ROLES, Role, Roles
from dpdmd.rollout import teacher_rollout
from dpdmd.train.adversary import Adversary, RealSamples, image_samples, teacher_samples
from dpdmd.train.checkpoint import (
    Checkpoint,
    load_optimizer,
    optimizer_tensors,
    save_checkpoint,
)
from dpdmd.train.config import NO_CACHE, Recipe, flatten
from dpdmd.train.cost import forwards_per_update
from dpdmd.train.data import BatchSource, EncodedPrompts, MicroBatch, prompts_digest
from dpdmd.train.distribution import (
    device_name,
    everywhere,
    fingerprint,
    new_accelerator,
    on_first,
    replicate,
    require_equal,
    shard,
    whole,
)
from dpdmd.train.ema import Ema
from dpdmd.train.plan import make_plan
from dpdmd.train.run_folder import peak_memory_bytes, recipe_hash, versions
from dpdmd.train.teacher_samples import TeacherSamples, samples_folder
from dpdmd.train.updates import (
    MicroLoss,
    Players,
    Trained,
    Updater,
    draw_samples,
    fake_score_loss,
    learning_rate_at,
    student_loss,
)
from dpdmd.train.validation import Validation, default_prompts
from dpdmd.train.validation_scores import Judge

SAMPLES_HINT = "on fewer processes raise train.accumulation, on more lower it, so that their product stays"


def _networks(recipe: Recipe, adapter: ModelAdapter) -> tuple[torch.nn.Module, torch.nn.Module | None]:
    """The teacher's network, and the one that the student starts from, None for the teacher's."""
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


class Trainer:
    """The state of a run: roles, optimisers, moving average, `step` (student updates done) and training `seconds`."""

    def __init__(self, recipe: Recipe, adapter: ModelAdapter, accelerator: Accelerator | None = None):
        """Raises ValueError, before anything is loaded, for settings that do not fit the model.

        accelerator: default `new_accelerator()`. Raises ValueError in all processes when they were given different
        recipes, prompts, packages or models.
        """
        self.recipe, self.adapter = recipe, adapter
        self.plan = make_plan(recipe, adapter)
        if (missing := missing_package(recipe.model.dtype)) is not None:
            raise ValueError(missing)
        prompts = training_prompts(recipe.data.prompts, recipe.data.column)
        self._pictured = list(recipe.validation.prompts or default_prompts(prompts))
        self.notes = list(self.plan.notes)
        if recipe.data.prompts != SCENES:
            self.notes += lint_prompts(prompts, tokenizers(adapter.texts, adapter.token_limits))
        self.accelerator = accelerator or new_accelerator()
        self._features: FeatureExtractor | None = None
        if (problem := on_first(self._load_features)) is not None:
            raise ValueError(problem)
        self._real_identity = {"images_hash": images_digest(self.plan.real_images)} if self.plan.real_images else {}
        require_equal({**flatten(recipe), "the prompts": prompts_digest(prompts), **self._real_identity, **versions()})
        # Before the networks are there: the text encoders and the autoencoder may need the memory.
        captions = [prompt for _, prompt in self.plan.real_images]
        encoded = EncodedPrompts(prompts, self._encoder([*prompts, *self._pictured, *captions]))
        images = image_samples(recipe, self.plan, adapter, self.accelerator) if self.plan.real_images else None
        teacher, start = _networks(recipe, adapter)
        require_equal({name: fingerprint(n) for name, n in {"teacher": teacher, "student.start": start}.items() if n})
        if recipe.model.dtype in QUANTISED:
            quantise(teacher, recipe.model.dtype, adapter.block_lists, self.accelerator.device)
        self.roles = Roles(
            teacher,
            start,
            lora=lora_configs(recipe.lora, adapter, teacher),
            frozen_dtype=torch.bfloat16 if recipe.model.dtype == "bf16" else torch.float32,
            seed=recipe.train.seed,
        )
        if recipe.train.gradient_checkpointing:
            self.roles.enable_gradient_checkpointing()
        if recipe.train.compile:
            self.roles.compile_blocks(adapter.block_lists)
        if recipe.train.shard:
            shard(self.roles, self.accelerator, adapter.block_lists)
        else:
            replicate(self.roles, self.accelerator)
        rates = {"student": recipe.train.learning_rate}
        rates["fake_score"] = recipe.train.fake_learning_rate or recipe.train.learning_rate
        self.updaters: dict[Trained, Updater] = {
            role: self._updater(role, self.roles.networks[role], self.roles.parameters(role), rate)
            for role, rate in rates.items()
        }
        self.adversary, discriminator = None, None
        if self.plan.feature_blocks:
            args = adapter, self.roles, encoded, self.accelerator
            self.adversary = Adversary(recipe, self.plan, *args, draw=partial(self._real_samples, images))
            discriminator, rate = self.adversary.discriminator, recipe.objective.adversarial.learning_rate
            parameters = dict(discriminator.head.named_parameters())
            self.updaters["discriminator"] = self._updater("discriminator", self.adversary.network, parameters, rate)
        self.ema = Ema(self.roles.parameters("student"), recipe.train.ema_decay) if recipe.train.ema_decay else None
        self.players = Players(
            student=self._denoiser("student"),
            teacher=self._denoiser("teacher"),
            fake_score=self._denoiser("fake_score"),
            path=adapter.path,
            prediction_space=adapter.prediction_space,
            student_grid=self.plan.student_grid,
            teacher_grid=self.plan.teacher_grid,
            student_kind=recipe.student.kind,
            random_step=recipe.train.random_step,
            time_jitter=recipe.train.time_jitter,
            discriminator=discriminator,
        )
        self.batches = BatchSource(
            prompts=encoded,
            latent_shape=self.plan.latent_shape,
            seed=recipe.train.seed,
            batch_size=recipe.train.batch_size,
            accumulation=recipe.train.accumulation,
            fake_updates=1 if recipe.train.reuse_samples else recipe.train.fake_updates,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            device=self.accelerator.device,
            samples_per_prompt=recipe.train.samples_per_prompt,
            num_pairs=recipe.objective.num_pairs,
        )
        self.teacher_samples = self._teacher_samples() if self.batches.num_pairs else None
        # Networks beside those of the roles that training needs (a discriminator, a perceptual backbone), by name: a
        # comparison counts their parameters.
        self.extras = {t.name: t.distance.network for t in self.plan.objective.terms if isinstance(t, Perceptual)}
        self.extras |= {"discriminator": discriminator.head} if discriminator else {}
        self.step, self.seconds, self.peak_memory = 0, 0.0, 0
        self._validation: tuple[Validation, Tensor] | None = None
        self._judge: Judge | None = None

    def iterate(self) -> dict[str, Any]:
        """M fake-score updates, one student update, one step of the moving average; returns the line to log.

        The head of an adversarial objective is updated behind every fake-score update, on the same samples.
        """
        started = time.perf_counter()
        fake_rows = self._fake_updates()
        student_row = self._student_update()
        if self.ema is not None:
            self.ema.update()
        rate = learning_rate_at(self.step, self.recipe.train.learning_rate, self.recipe.train.warmup)
        fake_row = {key: sum(row[key] for row in fake_rows) / len(fake_rows) for key in fake_rows[0]}
        row = self._mean_over_processes(student_row | fake_row)
        self.step += 1
        self.seconds += time.perf_counter() - started
        return {"step": self.step, "seconds": self.seconds, **row, "learning_rate": rate}

    def _fake_updates(self) -> list[dict[str, float]]:
        """M updates of the fake score, on samples of their own or on one rollout that they share; more at first."""
        train = self.recipe.train
        number = train.fake_updates + (train.fake_head_start if self.step == 0 else 0)

        @lru_cache(maxsize=train.accumulation)
        def drawn(update: int, index: int) -> tuple[MicroBatch, Tensor]:
            batch = self.batches.micro_batch("fake_score", self.step, index, update=update)
            return batch, draw_samples(self.players, batch, detach_after=self.plan.objective.detach_after)

        def samples(m: int, index: int) -> tuple[MicroBatch, Tensor]:
            return drawn(0 if train.reuse_samples else m, index)

        def fake_loss(m: int, index: int) -> MicroLoss:
            return fake_score_loss(self.players, *samples(m, index), self.plan.tau_range, stream=f"denoising_{m}")

        def head_loss(m: int, index: int) -> MicroLoss:
            return self.adversary.loss(*samples(m, index), update=m)

        losses = {"fake_score": fake_loss} | ({"discriminator": head_loss} if self.adversary else {})
        rows = [{} for _ in range(number)]
        for m, row in enumerate(rows):
            for name, loss in losses.items():
                row |= self.updaters[name].update(self.step, self._micro(partial(loss, m)))
        return rows

    def _student_update(self) -> dict[str, float]:
        def micro_loss(index: int) -> MicroLoss:
            batch = self.batches.micro_batch("student", self.step, index)
            teacher_x0 = self.teacher_samples(batch) if self.teacher_samples else None
            return student_loss(self.players, batch, self.plan.objective, step=self.step, teacher_x0=teacher_x0)

        return self.updaters["student"].update(self.step, self._micro(micro_loss))

    def _micro(self, micro_loss) -> list:
        return [partial(micro_loss, index) for index in range(self.recipe.train.accumulation)]

    def network(self, role: Role) -> torch.nn.Module:
        """The network of a role without what is wrapped around it for several processes."""
        return self.roles.modules[role]

    def is_finished(self) -> bool:
        """Whether train.num_updates are done or train.max_seconds over; on all processes when on any."""
        train = self.recipe.train
        if self.step >= train.num_updates or train.max_seconds is None:
            return self.step >= train.num_updates
        return any(everywhere(lambda: self.seconds >= train.max_seconds))

    def say(self, message: str) -> None:
        """Print beside the progress bar, once."""
        if self.accelerator.is_main_process:
            tqdm.write(message)

    def facts(self) -> dict[str, Any]:
        """What a run is made of, for provenance.json."""
        forward, backward = forwards_per_update(self.plan, self.recipe)
        return {
            "teacher": self.adapter.source,
            "guidance_scale": self.plan.guidance_scale,
            "num_inference_steps": self.plan.teacher_grid.num_steps,
            "grid": list(self.plan.student_grid.times),
            "teacher_grid": list(self.plan.teacher_grid.times),
            "anchor_stops": list(self.plan.anchor_stops),
            "feature_blocks": list(self.plan.feature_blocks),
            "lint": self.notes,
            "latent_shape": list(self.plan.latent_shape),
            "num_prompts": len(self.batches.prompts),
            "num_parameters": sum(p.numel() for p in self.updaters["student"].parameters),
            "extra_parameters": {name: sum(p.numel() for p in n.parameters()) for name, n in self.extras.items()},
            "forwards_per_update": forward,
            "backwards_per_update": backward,
            "seed": self.recipe.train.seed,
            "samples_per_update": self._samples_per_update(),
        }

    def setup(self) -> dict[str, Any]:
        """What a session of a run may have of its own, for provenance.json."""
        return {
            "num_processes": self.accelerator.num_processes,
            "device": device_name(self.accelerator.device),
            "shard": self.recipe.train.shard,
        }

    def describe(self) -> str:
        """What runs, in a line, to compare with what was asked for."""
        number, device = self.accelerator.num_processes, device_name(self.accelerator.device)
        if number == 1:
            return f"one process on {device}, {self._samples_per_update()} samples per update"
        networks = "a share of every network in each" if self.recipe.train.shard else "copies of the networks in each"
        return f"{number} processes on {device}, {networks}, {self._samples_per_update()} samples per update"

    def save(self, folder: Path) -> None:
        """Write a checkpoint; all processes wait for it, and raise OSError when it cannot be written."""
        tensors = {}
        for role, updater in self.updaters.items():
            tensors[role] = {name: p.detach() for name, p in updater.named_parameters.items()}
            tensors[f"{role}_optimizer"] = optimizer_tensors(updater.optimizer, updater.named_parameters)
        if self.ema is not None:
            tensors["ema"] = self.ema.average
        state = {"step": self.step, "seconds": self.seconds, "peak_memory_bytes": self._peak(), **self._identity()}
        save_checkpoint(folder, tensors, state, keep=self.recipe.checkpoint.keep, shares=self.recipe.train.shard)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become what was saved. Raises ValueError when it was saved by another recipe, prompt list or setup."""
        state = checkpoint.state
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise ValueError(
                    f"checkpoint {checkpoint.folder} belongs to a run with another {key}: {state.get(key)}, now {mine}"
                    + (f"; {SAMPLES_HINT}" if key == "samples_per_update" else "")
                )
        if checkpoint.step > self.recipe.train.num_updates:
            raise ValueError(
                f"train.num_updates must be at least the {checkpoint.step} updates that the run has done already, "
                f"got {self.recipe.train.num_updates}"
            )
        for role, updater in self.updaters.items():
            checkpoint.load(role, {name: p.detach() for name, p in updater.named_parameters.items()})
            load_optimizer(updater.optimizer, updater.named_parameters, checkpoint, f"{role}_optimizer")
        if self.ema is not None:
            checkpoint.load("ema", self.ema.average)
        self.step, self.seconds, self.peak_memory = state["step"], state["seconds"], state["peak_memory_bytes"]

    def write_student(self, folder: Path) -> None:
        """The student's weights (averaged if there are such), and `student.json`, which names base and grid.

        `student.safetensors` holds all weights; of an adapter there is `pytorch_lora_weights.safetensors`. Every
        process has to call it. Raises OSError in all of them when the first cannot write.
        """
        network, teacher = self.network("student"), self.recipe.model.teacher
        is_lora = "student" in self.roles.adapters
        with self._averaged():
            state = get_peft_model_state_dict(network, adapter_name="student") if is_lora else network.state_dict()
            weights = self._gathered(state)
            if is_lora:
                on_first(lambda: save_lora(self.adapter, weights, network.peft_config["student"], folder))
            else:
                on_first(lambda: write_tensors(folder / "student.safetensors", weights))
        is_folder = teacher not in BUILT_IN and Path(teacher).is_dir()
        info = {
            # Absolute, so that the student can be sampled from any working directory.
            "base": str(Path(teacher).resolve()) if is_folder else teacher,
            "grid": list(self.plan.student_grid.times),
            "num_inference_steps": self.plan.student_grid.num_steps,
            "guidance_scale": 1.0,
            "kind": self.recipe.student.kind,
            "embedded_guidance": self.plan.embedded_guidance["student"],
            "height": self.recipe.model.height,
            "width": self.recipe.model.width,
            "objective": self.recipe.objective.name,
            "updates": self.step,
            "seconds": self.seconds,
            "peak_memory_bytes": self._peak(),
        }
        on_first(lambda: write_json(folder / "student.json", info))

    def draw_validation(self, folder: Path) -> dict[str, Any]:
        """Write the picture of this step; returns the line of its figures.

        "validation/seconds": what it took, which are no training seconds; "once_seconds": of them what the
        first one alone takes, for the teacher's images and the network of the figures. All processes draw: sharded
        networks need them, and the others would only wait; the first one scores. Raises OSError in all of them when it
        cannot be written.
        """
        started = time.perf_counter()
        once = self._validation is None
        if once:
            config = self.recipe.validation
            validation = Validation(
                self.adapter,
                folder,
                encode=self.batches.prompts.encode,
                prompts=self._pictured,
                num_seeds=config.num_seeds,
                latent_shape=self.plan.latent_shape,
                batch_size=self.recipe.train.batch_size,
                device=self.accelerator.device,
            )
            teacher = validation.teacher_images(self.players.teacher, self.plan.teacher_grid, self.plan.guidance_scale)
            self._validation = validation, teacher
        validation, teacher = self._validation
        if once:
            on_first(lambda: self._prepare_judge(validation, teacher))
        prepared = time.perf_counter()
        students = self.players.student, self.plan.student_grid, self.recipe.student.kind
        with self._averaged():
            student = validation.student_images(*students)
        live = validation.student_images(*students) if self.ema else None
        on_first(lambda: validation.draw(self.step, teacher, student))
        row = on_first(lambda: self._judged(student, live))
        seconds = {"validation/seconds": time.perf_counter() - started}
        if once:
            seconds["once_seconds"] = prepared - started
        return {"step": self.step, "seconds": self.seconds} | seconds | row

    def _prepare_judge(self, validation: Validation, teacher: Tensor) -> None:
        try:
            self._judge = Judge(validation, teacher, self._features, str(self.accelerator.device))
        except ValueError as error:
            self.say(f"note: validation has no figures: {error}")
            return
        for what, why in self._judge.skipped.items():
            self.say(f"note: validation has no {what}: {why.replace('--features', 'validation.features')}")

    def _judged(self, student: Tensor, live: Tensor | None) -> dict[str, Any]:
        """The figures; without those that images do not allow, such as black ones, which no network tells apart."""
        try:
            return self._judge.row(self.step, student, live) if self._judge else {"alarms": {}}
        except ValueError as error:
            self.say(f"step {self.step}: validation has no figures: {error}")
            return {"alarms": {}}

    def _load_features(self) -> str | None:
        """Load the network of validation.features in the process that scores; returns what is wrong with it."""
        config = self.recipe.validation
        if not config.every or config.features == "auto":
            return None
        try:
            self._features = load_extractor(config.features, device=str(self.accelerator.device))
        except ValueError as error:
            return f"validation.features: {error}"
        return None

    def _encoder(self, texts: list[str]) -> Callable[[list[str]], Condition]:
        """What gives the conditioning of `texts` and of "": their cache, filled here, or the text encoders."""
        recipe, device = self.recipe, self.accelerator.device
        if recipe.data.cache == NO_CACHE:
            if device.type != "cpu":
                self.adapter.texts.to(device)
            return self.adapter.encode
        dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
        cache = EmbeddingCache(recipe.data.cache or default_folder(), self.adapter, dtype)

        def ensure() -> None:
            if device.type != "cpu" and cache.missing([*texts, ""]):
                self.adapter.texts.to(device, dtype)
            cache.ensure([""], progress=False, say=lambda message: None)  # alone, as without a cache: equal to the bit
            cache.ensure(texts, progress=self.accelerator.is_main_process, say=self.say)

        on_first(ensure)
        everywhere(ensure)
        # The encoders' memory is the networks'.
        vars(self.adapter).pop("texts", None)
        return cache.condition

    def _sample_teacher(self, batch: MicroBatch) -> Tensor:
        """The guided teacher's x0 (B, C, H, W) from the noise of a micro-batch."""
        guidance = Guidance(self.plan.guidance_scale, rule=self.adapter.guidance_rule)
        args = self.players.teacher, self.players.path, batch.noise, batch.cond, batch.uncond
        return teacher_rollout(*args, grid=self.plan.teacher_grid, guidance=guidance)

    def _teacher_samples(self) -> TeacherSamples:
        """The teacher's samples of the pool, in the folder of the embeddings."""
        root = Path(self.recipe.data.cache or default_folder())
        folder = on_first(lambda: samples_folder(root, self.recipe, self.plan, self.adapter))
        return TeacherSamples(folder, self._sample_teacher, lambda flag: any(everywhere(lambda: flag)))

    def _real_samples(self, images: RealSamples | None) -> RealSamples:
        """What a discriminator takes for real: the images, or samples of the teacher."""
        if images is not None:
            return images
        sample = self._sample_teacher if self.recipe.data.cache == NO_CACHE else self._teacher_samples()
        return teacher_samples(self.recipe, self.batches, sample, self.accelerator)

    def _gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on the CPU of the main process, which writes them; every process has to ask."""
        is_main = self.accelerator.is_main_process
        gathered = ((name, whole(tensor)) for name, tensor in tensors.items())
        return {name: tensor.cpu() for name, tensor in gathered if is_main}

    def _averaged(self) -> AbstractContextManager[None]:
        """Within it the student computes with its averaged weights, if there are any."""
        return self.ema.applied() if self.ema else nullcontext()

    def _updater(
        self, role: Trained, network: torch.nn.Module, parameters: dict[str, torch.nn.Parameter], learning_rate: float
    ) -> Updater:
        config = self.recipe.train
        return Updater(
            role,
            network,
            parameters,
            self.accelerator,
            learning_rate=learning_rate,
            warmup=config.warmup,
            betas=config.betas,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
        )

    def _denoiser(self, role: Role) -> Denoiser:
        """The role's denoiser; in bf16 the network call alone is autocast, its prediction is fp32."""
        denoise = denoiser(self.adapter, self.roles, role, self.plan.embedded_guidance[role])
        device = self.accelerator.device.type
        if self.recipe.train.precision == "fp32":
            return denoise

        def in_bf16(x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
            with torch.autocast(device, dtype=torch.bfloat16):
                return denoise(x_t, t, cond)

        return in_bf16

    def _mean_over_processes(self, row: dict[str, float]) -> dict[str, float]:
        if self.accelerator.num_processes == 1:
            return row
        values = torch.tensor(list(row.values()), device=self.accelerator.device)
        return dict(zip(row, self.accelerator.reduce(values, reduction="mean").tolist(), strict=True))

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that goes on from it."""
        return {
            "recipe_hash": recipe_hash(self.recipe),
            "prompts_hash": self.batches.prompts.digest,
            "samples_per_update": self._samples_per_update(),
            **self._real_identity,
        }

    def _samples_per_update(self) -> int:
        train = self.recipe.train
        return train.batch_size * train.accumulation * self.accelerator.num_processes

    def _peak(self) -> int:
        return max(self.peak_memory, peak_memory_bytes())
