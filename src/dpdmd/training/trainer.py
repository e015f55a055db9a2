"""The state of a run and its one iteration: M fake-score updates, then one student update."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from dpdmd.distributed.processes import on_all_processes, on_main_process
from dpdmd.distributed.wrapping import full_tensor
from dpdmd.method.roles import Role
from dpdmd.models.load import BUILT_IN
from dpdmd.models.lora import save_lora
from dpdmd.models.student_file import AVERAGE, WEIGHTS_FILE, StudentFile, StudentSize
from dpdmd.recipe.plan import Plan
from dpdmd.store.provenance import peak_memory_bytes
from dpdmd.store.tensors import write_tensors
from dpdmd.training.data import MicroBatch
from dpdmd.training.ema import align
from dpdmd.training.optimisers import load_optimizer, optimizer_tensors
from dpdmd.training.parts import Parts
from dpdmd.training.run.checkpoint import Checkpoint, save_checkpoint
from dpdmd.training.run.identity import differences, not_compared
from dpdmd.training.run.saving import Saving, staged
from dpdmd.training.updater import rate_factor
from dpdmd.training.updates import MicroLoss, draw_samples, fake_score_loss, student_loss

logger = logging.getLogger(__name__)

Drawn = tuple[MicroBatch, Tensor]  # a micro-batch and the student's samples x0 (B, C, H, W) of it, without graph


class Trainer:
    """Trains the parts of a run. step: student updates done; seconds: training time they took."""

    def __init__(self, plan: Plan, parts: Parts):
        self.plan, self.parts = plan, parts
        self.roles, self.denoisers, self.updaters = parts.roles, parts.denoisers, parts.updaters
        self.ema, self.batches, self.accelerator = parts.ema, parts.batches, parts.accelerator
        self.step, self.seconds, self.peak_memory = 0, 0.0, 0
        self.saving = Saving()

    def iterate(self) -> dict[str, Any]:
        """M fake-score updates, one student update, and what follows the student; returns the row to log.

        The student comes first when the fake score learns its samples. The head of a discriminator is updated after
        every fake-score update, on the same samples.
        """
        started = time.perf_counter()
        if self.plan.data.reuse_samples == "student":
            student_row, drawn = self._student_update()
            fake_rows = self._fake_updates(drawn)
        else:
            fake_rows = self._fake_updates()
            student_row, _ = self._student_update()
        if self.ema is not None:
            self.ema.update()
        optimiser = self.plan.optimiser
        if optimiser.ida_decay < 1:
            fake_score, student = (self.updaters[role].named_parameters for role in ("fake_score", "student"))
            align(fake_score, student, optimiser.ida_decay)
        rate = optimiser.learning_rate * rate_factor(self.step, optimiser)
        fake_row = {key: sum(row[key] for row in fake_rows) / len(fake_rows) for key in fake_rows[0]}
        row = self._mean_over_processes(student_row | fake_row)
        self.step += 1
        self.seconds += time.perf_counter() - started
        return {"step": self.step, "seconds": self.seconds, **row, "learning_rate": rate}

    def _fake_updates(self, drawn: list[Drawn] | None = None) -> list[dict[str, float]]:
        """M updates of the fake score, all on the samples `drawn`, on those of one rollout, or each on its own."""
        rows, adversary = [], self.parts.adversary
        for m in range(self.plan.data.fake_updates):
            if drawn is None or not self.plan.data.reuse_samples:
                drawn = [self._draw(m, index) for index in range(self.plan.data.accumulation)]
            losses = [
                partial(fake_score_loss, self.denoisers, self.plan, *samples, stream=f"denoising_{m}")
                for samples in drawn
            ]
            row = self.updaters["fake_score"].update(self.step, losses)
            if adversary is not None:
                head_losses = [partial(adversary.loss, *samples, update=m) for samples in drawn]
                row |= self.updaters["discriminator"].update(self.step, head_losses)
            rows.append(row)
        return rows

    def _draw(self, update: int, index: int) -> Drawn:
        batch = self.batches.micro_batch("fake_score", self.step, index, update=update)
        return batch, draw_samples(self.denoisers.student, self.plan.at(batch.size), batch)

    def _student_update(self) -> tuple[dict[str, float], list[Drawn]]:
        """One update of the student; returns what to log, and the samples that it drew in each micro-batch."""
        drawn: list[Drawn] = []
        losses = [partial(self._student_loss, index, drawn) for index in range(self.plan.data.accumulation)]
        return self.updaters["student"].update(self.step, losses), drawn

    def _student_loss(self, index: int, drawn: list[Drawn]) -> MicroLoss:
        batch = self.batches.micro_batch("student", self.step, index)
        teacher_x0 = self.parts.teacher_samples(batch) if self.parts.teacher_samples else None
        loss = student_loss(self.denoisers, self.plan.at(batch.size), batch, step=self.step, teacher_x0=teacher_x0)
        assert loss.x0 is not None, "the student's loss is one of its samples"
        drawn.append((batch, loss.x0))
        return loss

    def network(self, role: Role) -> nn.Module:
        """The network of a role, without its wrapper for several processes."""
        return self.roles.modules[role]

    def is_finished(self) -> bool:
        """Whether train.num_updates or train.max_seconds is reached; true on all processes as soon as on one."""
        done, limit = self.step >= self.plan.budget.num_updates, self.plan.budget.max_seconds
        if done or limit is None:
            return done
        return any(on_all_processes(lambda: self.seconds >= limit))

    def save(self, folder: Path, *, wait: bool = True) -> None:
        """Write a checkpoint, after the one before is written; every process must call this.

        wait: until it is written; else it is written while training goes on, and the next save or `self.saving.wait`
        waits. Raises OSError in all processes when this checkpoint, or the one before, cannot be written.
        """
        self.saving.wait()
        tensors = {}
        for role, updater in self.updaters.items():
            tensors[role] = {name: p.detach() for name, p in updater.named_parameters.items()}
            tensors[f"{role}_optimizer"] = optimizer_tensors(updater.optimizer, updater.named_parameters)
        if self.ema is not None:
            tensors[AVERAGE] = self.ema.average
        state = {"step": self.step, "seconds": self.seconds, "peak_memory_bytes": self.peak(), **self.parts.identity}
        # What its student needs to be sampled: student.json, and a LoRA's file.
        describe = self._student_writer() if "student" in self.roles.adapters else self._student_file().write
        options = {"keep": self.plan.checkpoint.keep, "shares": bool(self.plan.compute.shard), "student": describe}
        if wait:
            save_checkpoint(folder, tensors, state, **options)
            return
        copies = {name: staged(values) for name, values in tensors.items()}
        self.saving.start(lambda group: save_checkpoint(folder, copies, state, **options, group=group))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore a saved state. Raises ValueError when it belongs to another recipe, prompt list or setup."""
        state, budget = checkpoint.state, self.plan.budget
        if differ := differences(state, self.parts.identity):
            raise ValueError(
                f"checkpoint {checkpoint.folder} belongs to another run: {'; '.join(differ)}. Give it what it began "
                "with, or choose another output.folder"
            )
        if unknown := not_compared(state):
            logger.warning(
                "checkpoint %s is of an earlier version, which did not record the content of: %s. See yourself that it "
                "is the same",
                checkpoint.folder,
                ", ".join(unknown),
            )
        if checkpoint.step > budget.num_updates:
            raise ValueError(
                f"train.num_updates must be at least the {checkpoint.step} updates that the run has done already, "
                f"got {budget.num_updates}"
            )
        for role, updater in self.updaters.items():
            checkpoint.load(role, {name: p.detach() for name, p in updater.named_parameters.items()})
            load_optimizer(updater.optimizer, updater.named_parameters, checkpoint, f"{role}_optimizer")
        if self.ema is not None:
            checkpoint.load(AVERAGE, self.ema.average)
        self.step, self.seconds, self.peak_memory = state["step"], state["seconds"], state["peak_memory_bytes"]

    def write_student(self, folder: Path) -> None:
        """Write the student's weights (averaged if there is an average), and `student.json`, which names base and grid.

        The weights are in `student.safetensors`, or for LoRA in `pytorch_lora_weights.safetensors`. Every process must
        call this. Raises OSError in all of them when the first cannot write.
        """
        write = self._student_writer()
        on_main_process(lambda: write(folder))

    def _student_writer(self) -> Callable[[Path], None]:
        """What writes the student of now into a folder, in the first process; its weights are gathered here, by all."""
        network, adapter, description = self.network("student"), self.parts.adapter, self._student_file()
        is_lora = "student" in self.roles.adapters
        with self.averaged():
            state = get_peft_model_state_dict(network, adapter_name="student") if is_lora else network.state_dict()
            weights = self._gathered(state)

        def write(folder: Path) -> None:
            if is_lora:
                config = cast("Any", network).peft_config["student"]  # set by peft
                save_lora(adapter, weights, config, folder)
            else:
                write_tensors(folder / WEIGHTS_FILE, weights)
            description.write(folder)

        return write

    def _student_file(self) -> StudentFile:
        plan, teacher = self.plan, self.plan.teacher.source
        is_folder = teacher not in BUILT_IN and Path(teacher).is_dir()
        height, width = plan.image_size or (None, None)
        return StudentFile(
            # Absolute, so that the student can be sampled from any working directory.
            base=str(Path(teacher).resolve()) if is_folder else teacher,
            base_loras=self.parts.adapter.loras,
            base_parts=self.parts.identity["teacher_parts"],
            grid=plan.student.grid.times,
            kind=plan.student.kind,
            negative_prompt=plan.teacher.negative_prompt,
            embedded_guidance=plan.embedded_guidance["student"],
            height=height,
            width=width,
            sizes=tuple(
                StudentSize(height=at.image_size[0], width=at.image_size[1], grid=at.student.grid.times)
                for at in (plan.at_each_size if len(plan.sizes) > 1 else [])
                if at.image_size is not None
            ),
            objective=plan.objective_name,
            updates=self.step,
            seconds=self.seconds,
            peak_memory_bytes=self.peak(),
        )

    def draw_validation(self, folder: Path) -> dict[str, Any]:
        """Write the picture of this step; returns the row of its scores (`Validator.row`)."""
        encode, averaged = self.batches.prompts.encode, self.averaged if self.ema else None
        row = self.parts.validator.row(self.step, folder, self.parts.teacher, self.denoisers.student, encode, averaged)
        return {"step": self.step, "seconds": self.seconds} | row

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the student computes with its averaged weights, if there are any."""
        return self.ema.applied() if self.ema else nullcontext()

    def _gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Full tensors on the CPU of the main process, which writes them; every process must call this."""
        is_main = self.accelerator.is_main_process
        gathered = ((name, full_tensor(tensor)) for name, tensor in tensors.items())
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in gathered if is_main}

    def _mean_over_processes(self, row: dict[str, float]) -> dict[str, float]:
        """The mean of each key. Raises RuntimeError in all processes when their numbers of network calls differ.

        Processes that share networks gather the parts at every call: unequal numbers would pair different calls.
        """
        if self.accelerator.num_processes == 1:
            return row
        values = torch.tensor(
            [*row.values(), self.roles.num_calls], dtype=torch.float64, device=self.accelerator.device
        )
        rows = self.accelerator.gather(values[None])
        num_calls = rows[:, -1].tolist()
        if len(set(num_calls)) > 1:
            raise RuntimeError(f"the processes made different numbers of network calls: {num_calls}")
        return dict(zip(row, rows[:, :-1].mean(dim=0).tolist(), strict=True))

    def peak(self) -> int:
        """The most bytes of memory of this process so far: of the GPU if there is one, else resident."""
        return max(self.peak_memory, peak_memory_bytes())
