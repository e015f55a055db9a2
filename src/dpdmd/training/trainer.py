"""The state of a run and its one iteration: M fake-score updates, then one student update."""

import time
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator
from peft import get_peft_model_state_dict
from torch import Tensor
from tqdm import tqdm

from dpdmd.data.embeddings import default_folder
from dpdmd.data.images import images_digest
from dpdmd.data.prompts import SCENES, lint_prompts, training_prompts
from dpdmd.distributed.processes import everywhere, new_accelerator, on_first, require_equal
from dpdmd.distributed.wrapping import whole
from dpdmd.method.guidance import Guidance
from dpdmd.method.roles import Role
from dpdmd.method.rollout import teacher_rollout
from dpdmd.method.terms.perceptual import Perceptual
from dpdmd.models.base import ModelAdapter
from dpdmd.models.load import BUILT_IN
from dpdmd.models.lora import save_lora
from dpdmd.models.parts import tokenizers
from dpdmd.models.quantised import missing_package
from dpdmd.recipe.resolve import make_plan
from dpdmd.recipe.schema import NO_CACHE, Recipe
from dpdmd.recipe.toml import flatten
from dpdmd.store.files import write_json
from dpdmd.store.provenance import peak_memory_bytes, versions
from dpdmd.store.tensors import write_tensors
from dpdmd.training.adversary import Adversary, RealSamples, image_samples, teacher_samples
from dpdmd.training.assemble import new_batches, new_roles, role_denoiser, text_encoder
from dpdmd.training.data import EncodedPrompts, MicroBatch, prompts_digest
from dpdmd.training.ema import Ema
from dpdmd.training.run.checkpoint import Checkpoint, load_optimizer, optimizer_tensors, save_checkpoint
from dpdmd.training.run.folder import recipe_hash
from dpdmd.training.teacher_samples import TeacherSamples, samples_folder
from dpdmd.training.updates import (
    MicroLoss,
    Players,
    Trained,
    Updater,
    draw_samples,
    fake_score_loss,
    learning_rate_at,
    student_loss,
)
from dpdmd.training.validation.images import default_prompts
from dpdmd.training.validation.validator import Validator

SAMPLES_HINT = "on fewer processes raise train.accumulation, on more lower it, so that their product stays"


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
        self.notes = list(self.plan.notes)
        if recipe.data.prompts != SCENES:
            self.notes += lint_prompts(prompts, tokenizers(adapter.texts, adapter.token_limits))
        self.accelerator = accelerator or new_accelerator()
        pictured = recipe.validation.prompts or default_prompts(prompts)
        self._validator = Validator(recipe, adapter, self.accelerator, pictured)
        self._real_identity = {"images_hash": images_digest(self.plan.real_images)} if self.plan.real_images else {}
        require_equal({**flatten(recipe), "the prompts": prompts_digest(prompts), **self._real_identity, **versions()})
        # Before the networks are there: the text encoders and the autoencoder may need the memory.
        captions = [prompt for _, prompt in self.plan.real_images]
        texts = [*prompts, *self._validator.prompts, *captions]
        encoded = EncodedPrompts(prompts, text_encoder(recipe, adapter, self.accelerator, texts, say=self.say))
        images = image_samples(recipe, self.plan, adapter, self.accelerator) if self.plan.real_images else None
        self.roles = new_roles(recipe, adapter, self.accelerator)
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
            **{role: role_denoiser(recipe, self.plan, adapter, self.roles, role) for role in get_args(Role)},
            path=adapter.path,
            prediction_space=adapter.prediction_space,
            student_grid=self.plan.student_grid,
            teacher_grid=self.plan.teacher_grid,
            student_kind=recipe.student.kind,
            random_step=recipe.train.random_step,
            time_jitter=recipe.train.time_jitter,
            discriminator=discriminator,
        )
        self.batches = new_batches(recipe, self.plan, encoded, self.accelerator)
        self.teacher_samples = self._teacher_samples() if self.batches.num_pairs else None
        # Networks beside those of the roles that training needs (a discriminator, a perceptual backbone), by name: a
        # comparison counts their parameters.
        self.extras = {t.name: t.distance.network for t in self.plan.objective.terms if isinstance(t, Perceptual)}
        self.extras |= {"discriminator": discriminator.head} if discriminator else {}
        self.step, self.seconds, self.peak_memory = 0, 0.0, 0

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
        """Write the picture of this step; returns the line of its figures (`Validator.row`)."""
        encode, averaged = self.batches.prompts.encode, self._averaged if self.ema else None
        row = self._validator.row(self.step, folder, self.plan, self.players, encode, averaged)
        return {"step": self.step, "seconds": self.seconds} | row

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

    def _mean_over_processes(self, row: dict[str, float]) -> dict[str, float]:
        """Key by key. Raises RuntimeError in all processes when they have called the networks unequally often.

        Processes that share networks gather their parts at every call: unequal numbers would pair wrongly.
        """
        if self.accelerator.num_processes == 1:
            return row
        values = torch.tensor(
            [*row.values(), self.roles.num_calls], dtype=torch.float64, device=self.accelerator.device
        )
        rows = self.accelerator.gather(values[None])
        num_calls = rows[:, -1].tolist()
        if len(set(num_calls)) > 1:
            raise RuntimeError(f"the processes have called their networks unequally often: {num_calls}")
        return dict(zip(row, rows[:, :-1].mean(dim=0).tolist(), strict=True))

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that goes on from it."""
        return {
            "recipe_hash": recipe_hash(self.recipe),
            "prompts_hash": self.batches.prompts.digest,
            "samples_per_update": self.samples_per_update,
            **self._real_identity,
        }

    @property
    def samples_per_update(self) -> int:
        """Over all processes and micro-batches."""
        train = self.recipe.train
        return train.batch_size * train.accumulation * self.accelerator.num_processes

    def _peak(self) -> int:
        return max(self.peak_memory, peak_memory_bytes())
