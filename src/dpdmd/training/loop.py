"""The training loop: iterate, log, save, draw, from the first update or the last checkpoint to the end."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dpdmd.distributed.processes import everywhere, new_accelerator, on_first, rank_and_number
from dpdmd.models.base import ModelAdapter
from dpdmd.planning.cost import checkpoint_bytes, network_sizes
from dpdmd.recipe.schema import Recipe
from dpdmd.training.facts import describe, facts, setup
from dpdmd.training.run.checkpoint import latest_checkpoint
from dpdmd.training.run.folder import RunFolder
from dpdmd.training.run.log import MetricsLog
from dpdmd.training.run.signals import StoppedBySignal, StopRequest
from dpdmd.training.run.trackers import Trackers, open_trackers, require_trackers
from dpdmd.training.trainer import Trainer
from dpdmd.training.validation.best import as_entry, keep_best
from dpdmd.training.validation.images import picture_path
from dpdmd.training.validation.scores import in_words, time_in_words, too_slow


def train(
    recipe: Recipe, adapter: ModelAdapter, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> Path:
    """Train a student as `recipe` says; returns the run folder, which then holds `student/`.

    resume: go on from the newest undamaged checkpoint of the folder, or start when it has none. overwrite: replace a
    run that is there. Raises ValueError for impossible settings, for a folder that holds a run and for processes that
    were given different things; OSError for a folder that cannot be written to, when the disk is too small or full, and
    when a tracker does not start; FloatingPointError when a loss is no longer finite, which `failure.json` then says;
    StoppedBySignal after Ctrl-C or SIGTERM, a checkpoint having been saved.
    """
    run = RunFolder(recipe.output.folder)
    run.refuse_if_unusable(recipe, resume=resume, overwrite=overwrite)
    require_trackers(recipe.output.trackers)
    size = checkpoint_bytes(recipe, network_sizes(recipe, adapter))
    notes = run.require_room(size, keep=recipe.checkpoint.keep)
    changed = run.changed_settings(recipe) if resume else {}
    notes += [f"{key} was {before!r} and is now {now!r}" for key, (before, now) in changed.items()]
    accelerator = new_accelerator()
    run.require_shared()
    trainer = Trainer(recipe, adapter, accelerator)
    say = trainer.say if progress else lambda message: None
    checkpoint = latest_checkpoint(run.checkpoints, say=trainer.say) if resume else None
    if checkpoint is not None:
        trainer.restore(checkpoint)

    def begin() -> int:
        run.prepare(recipe, overwrite=overwrite)
        run.write_provenance(facts(trainer), {**setup(trainer), "changed": changed}, from_step=trainer.step)
        run.forget_after(trainer.step)
        MetricsLog(run.scores).cut_after(trainer.step)
        return MetricsLog(run.metrics).cut_after(trainer.step)

    last_step = on_first(begin)
    say(describe(trainer))
    for message in [*notes, *trainer.notes]:
        say(f"note: {message}")
    if resume:
        say(f"resuming {run.root} after step {trainer.step}" if checkpoint else f"{run.root} has no checkpoint: step 0")
    is_main = accelerator.is_main_process
    with open_trackers(recipe, run, step=trainer.step, last_step=last_step or 0, is_main_process=is_main) as trackers:
        try:
            _loop(trainer, run, trackers, progress=progress)
        except FloatingPointError as error:
            if is_main:
                run.write_failure(trainer.step, error)
            raise
        try:
            trainer.write_student(run.student)
        except OSError as error:
            raise OSError(
                f"could not write the student: {error.strerror or error}. The last checkpoint has it; make room, then "
                "--resume writes it"
            ) from error
    if rows := on_first(MetricsLog(run.scores).rows):
        say(time_in_words(rows))
    return run.root


def _loop(trainer: Trainer, run: RunFolder, trackers: Trackers, *, progress: bool) -> None:
    """Iterate to the last update or second, with log, checkpoints and pictures at their intervals."""
    recipe, accelerator = trainer.recipe, trainer.accelerator
    metrics, scores = MetricsLog(run.metrics), MetricsLog(run.scores)
    last, finished = recipe.train.num_updates, trainer.is_finished()
    saved_step = trainer.step if trainer.step else None
    hide = not (progress and accelerator.is_main_process)
    with StopRequest() as stop, tqdm(total=last, initial=trainer.step, desc=run.root.name, disable=hide) as bar:
        validate = partial(_validate, trainer, run, trackers, scores, quiet=hide)
        is_validated = on_first(lambda: any(row["step"] == trainer.step for row in scores.rows()))
        if trainer.step and _is_due(trainer.step, recipe.validation.every) and not is_validated:
            validate()  # the run was killed behind the checkpoint of this step
        while not finished:
            row = trainer.iterate()
            # All stop at the same step or none does.
            signum = max(everywhere(partial(_log, metrics, trackers, row, stop)))
            bar.set_postfix({key.removeprefix("loss/"): f"{row[key]:.3g}" for key in row if key.startswith("loss/")})
            bar.update()
            finished = trainer.is_finished()
            if signum or finished or _is_due(trainer.step, recipe.checkpoint.every):
                if recipe.checkpoint.students:
                    # Before the checkpoint: killed in between, the run comes by again.
                    trainer.write_student(run.students / f"step-{trainer.step:06d}")
                trainer.save(run.checkpoints)
                saved_step = trainer.step
            if signum:
                raise StoppedBySignal(
                    signum, f"stopped after step {trainer.step}; the checkpoint is saved, --resume goes on from it"
                )
            if _is_due(trainer.step, recipe.validation.every):
                validate()
    assert saved_step == trainer.step


def _log(metrics: MetricsLog, trackers: Trackers, row: dict[str, float], stop: StopRequest) -> int:
    """The first process writes the line of an update; returns the signal that this one has received, 0 for none."""
    if rank_and_number()[0] == 0:
        metrics.append(row)
        trackers.log(row)
    return stop.signum


def _validate(trainer: Trainer, run: RunFolder, trackers: Trackers, scores: MetricsLog, *, quiet: bool) -> None:
    """Picture, best student, figures, whose line comes last: without it a resumed run validates this step again.

    What cannot be written costs itself only.
    """
    step, before = trainer.step, on_first(scores.rows)
    try:
        row = trainer.draw_validation(run.validation)
        started = time.perf_counter()
        is_best = _keep_best(trainer, run, [*before, row])
        row["validation/seconds"] += time.perf_counter() - started
        on_first(lambda: scores.append(row))
        trackers.log({key: value for key, value in row.items() if key == "step" or key.startswith("validation/")})
        trackers.log_picture(step, picture_path(run.validation, step))
    except OSError as error:
        trainer.say(f"step {step}: no picture or figures ({error.strerror or error}); training goes on")
        return
    told = before[-1]["alarms"] if before else {}
    for kind in row["alarms"].keys() - told.keys():
        trainer.say(f"ALARM: {row['alarms'][kind]}")
    if not quiet:
        best = ", the best so far" if is_best else ""
        seconds = row["validation/seconds"]
        trainer.say(f"step {step}: {in_words(row)}{best}; pictures in {run.validation} ({seconds:.1f} s)")
        slow = [too_slow(rows, trainer.recipe.validation.every) for rows in (before, [*before, row])]
        if slow[1] and not slow[0]:
            trainer.say(f"note: {slow[1]}")


def _keep_best(trainer: Trainer, run: RunFolder, rows: list[dict[str, Any]]) -> bool:
    """Keep the student that the last row is about if it is one of the best; returns whether it is the best."""
    checkpoint, entries = trainer.recipe.checkpoint, [as_entry(row) for row in rows]
    if not checkpoint.best or entries[-1] is None:
        return False
    seen = [entry for entry in entries[:-1] if entry is not None]
    limits = {"number": checkpoint.best, "floor": checkpoint.diversity_floor}
    try:
        return keep_best(run.best, entries[-1], seen, trainer.write_student, **limits)
    except OSError as error:
        trainer.say(f"step {trainer.step}: the best student is not kept ({error.strerror or error}); training goes on")
        return False


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
