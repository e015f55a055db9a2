"""The training loop: iterate, log, save, draw, from the first update or the last checkpoint to the end."""

from pathlib import Path

from tqdm import tqdm

from dpdmd.models.base import ModelAdapter
from dpdmd.train.checkpoint import latest_checkpoint
from dpdmd.train.config import Recipe
from dpdmd.train.health import MetricsLog
from dpdmd.train.run_folder import RunFolder
from dpdmd.train.signals import StoppedBySignal, StopRequest
from dpdmd.train.trackers import Trackers, open_trackers, require_trackers
from dpdmd.train.trainer import Trainer
from dpdmd.train.validation import picture_path


def train(
    recipe: Recipe, adapter: ModelAdapter, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> Path:
    """Train a student as `recipe` says; returns the run folder, which then holds `student/`.

    resume: go on from the newest undamaged checkpoint of the folder, or start when it has none. overwrite: replace a
    run that is there. Raises ValueError for impossible settings and for a folder that holds a run; OSError when a
    tracker does not start; FloatingPointError when a loss is no longer finite; StoppedBySignal after Ctrl-C or SIGTERM,
    a checkpoint having been saved.
    """
    run = RunFolder(recipe.output.folder)
    run.refuse_if_unusable(recipe, resume=resume, overwrite=overwrite)
    require_trackers(recipe.output.trackers)
    trainer = Trainer(recipe, adapter)
    trainer.accelerator.wait_for_everyone()
    say = trainer.say if progress else lambda message: None
    checkpoint = latest_checkpoint(run.checkpoints, say=trainer.say) if resume else None
    if checkpoint is not None:
        trainer.restore(checkpoint)
    last_step, is_main = 0, trainer.accelerator.is_main_process
    if is_main:
        run.prepare(recipe, overwrite=overwrite)
        run.write_provenance(trainer.facts(), from_step=trainer.step)
        last_step = MetricsLog(run.metrics).cut_after(trainer.step)
    for message in trainer.notes:
        say(f"note: {message}")
    if resume:
        say(f"resuming {run.root} after step {trainer.step}" if checkpoint else f"{run.root} has no checkpoint: step 0")
    with open_trackers(recipe, run, step=trainer.step, last_step=last_step, is_main_process=is_main) as trackers:
        _loop(trainer, run, trackers, progress=progress)
        trainer.write_student(run.student)
        trainer.accelerator.wait_for_everyone()
    return run.root


def _loop(trainer: Trainer, run: RunFolder, trackers: Trackers, *, progress: bool) -> None:
    """Iterate to the last update, with log, checkpoints and pictures at their intervals."""
    recipe, accelerator, metrics = trainer.recipe, trainer.accelerator, MetricsLog(run.metrics)
    last = recipe.train.num_updates
    saved_step = trainer.step if trainer.step else None
    hide = not (progress and accelerator.is_main_process)
    with StopRequest() as stop, tqdm(total=last, initial=trainer.step, desc=run.root.name, disable=hide) as bar:
        while trainer.step < last:
            row = trainer.iterate()
            if accelerator.is_main_process:
                metrics.append(row)
                trackers.log(row)
            bar.set_postfix({key.removeprefix("loss/"): f"{row[key]:.3g}" for key in row if key.startswith("loss/")})
            bar.update()
            signum = trainer.agree_on_signal(stop)
            if signum or trainer.step == last or _is_due(trainer.step, recipe.checkpoint.every):
                trainer.save(run.checkpoints)
                saved_step = trainer.step
            if signum:
                raise StoppedBySignal(
                    signum, f"stopped after step {trainer.step}; the checkpoint is saved, --resume goes on from it"
                )
            if _is_due(trainer.step, recipe.validation.every):
                seconds = trainer.draw_validation(run.validation)
                trackers.log_picture(trainer.step, picture_path(run.validation, trainer.step))
                if not hide:
                    trainer.say(f"step {trainer.step}: pictures in {run.validation} ({seconds:.1f} s)")
    assert saved_step == last


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
