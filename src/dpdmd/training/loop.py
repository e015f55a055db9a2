"""The training loop: iterate, log, save, validate, from the first update or the last checkpoint to the end."""

import logging
import shlex
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dpdmd.distributed.processes import new_accelerator, on_all_processes, on_main_process, rank_and_world_size
from dpdmd.models.base import ModelAdapter
from dpdmd.planning.cost import checkpoint_bytes, network_sizes
from dpdmd.recipe.plan import Plan
from dpdmd.recipe.schema import CheckpointConfig
from dpdmd.store.errors import StoppedBySignal
from dpdmd.store.jsonl import cut_after, read_rows
from dpdmd.store.progress import progress_bar
from dpdmd.training.facts import describe, facts, setup
from dpdmd.training.health import first_non_finite
from dpdmd.training.networks import require_compiler
from dpdmd.training.parts import build_parts
from dpdmd.training.run.checkpoint import latest_checkpoint
from dpdmd.training.run.folder import RunFolder
from dpdmd.training.run.log import log_row
from dpdmd.training.run.signals import StopRequest
from dpdmd.training.run.trackers import Trackers, open_trackers, require_trackers
from dpdmd.training.trainer import Trainer
from dpdmd.training.validation.best import as_entry, keep_best
from dpdmd.training.validation.picture import picture_path
from dpdmd.training.validation.scores import in_words, time_in_words, too_slow

logger = logging.getLogger(__name__)

Callback = Callable[[dict[str, Any]], None]


def run_training(
    plan: Plan,
    adapter: ModelAdapter,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train a student as `plan` says; returns the run folder, which then holds `student/`.

    resume: continue from the newest undamaged checkpoint of the folder, or start when it has none. overwrite: replace a
    run in the folder. callbacks: called in every process with the log row of each update.
    Raises ValueError for impossible settings, for a folder that holds a run and when the processes have different
    inputs; OSError for a folder that cannot be written to, when the disk is too small or full, and when a tracker does
    not start; FloatingPointError when a loss is not finite, with the reason in `failure.json`; StoppedBySignal on
    Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, after a checkpoint was saved.
    """
    run = RunFolder(plan.output.folder)
    run.refuse_if_unusable(plan.settings, resume=resume, overwrite=overwrite)
    require_trackers(plan.output.trackers)
    if plan.compute.compile:
        require_compiler()
    size = checkpoint_bytes(plan, network_sizes(plan, adapter))
    notes = run.require_room(size, keep=plan.checkpoint.keep)
    changed = run.changed_settings(plan.settings) if resume else {}
    notes += [f"{key} was {before!r} and is now {now!r}" for key, (before, now) in changed.items()]
    accelerator = new_accelerator()
    with run.removed_on_failure():
        run.require_shared()
        trainer = Trainer(plan, build_parts(plan, adapter, accelerator))
        last_step = _begin(trainer, run, changed, resume=resume, overwrite=overwrite)
    logger.info(describe(plan, trainer.parts))
    for message in [*notes, *trainer.parts.notes]:
        logger.info("note: %s", message)
    if resume and trainer.step:
        logger.info("resuming %s after step %d", run.root, trainer.step)
    elif resume:
        logger.info("%s has no checkpoint: step 0", run.root)
    is_main = accelerator.is_main_process
    with open_trackers(
        plan.output.trackers, plan.settings, run, step=trainer.step, last_step=last_step, is_main_process=is_main
    ) as trackers:
        _train(trainer, run, trackers, progress=progress, callbacks=callbacks)
    if rows := on_main_process(lambda: read_rows(run.scores)):
        logger.info(time_in_words(rows))
    return run.root


def _begin(trainer: Trainer, run: RunFolder, changed: dict[str, list[Any]], *, resume: bool, overwrite: bool) -> int:
    """Restore the last checkpoint when resuming, and make the folder ready; returns the last step of the log before.

    changed: settings that differ from when the run was last started.
    """
    plan, parts = trainer.plan, trainer.parts
    checkpoint = latest_checkpoint(run.checkpoints) if resume else None
    if checkpoint is not None:
        trainer.restore(checkpoint)

    def begin() -> int:
        run.prepare(plan.recipe_toml, overwrite=overwrite)
        run.write_provenance(facts(plan, parts), {**setup(plan, parts), "changed": changed}, from_step=trainer.step)
        run.forget_after(trainer.step)
        cut_after(run.scores, trainer.step)
        return cut_after(run.metrics, trainer.step)

    return on_main_process(begin) or 0


def _train(
    trainer: Trainer, run: RunFolder, trackers: Trackers, *, progress: bool, callbacks: Sequence[Callback]
) -> None:
    """Iterate to the end and write the student; a loss that is not finite leaves its reason in failure.json."""
    try:
        try:
            _loop(trainer, run, trackers, progress=progress, callbacks=callbacks)
        except Exception:
            trainer.saving.wait()  # the last checkpoint of a run that fails is kept as well
            raise
    except FloatingPointError as caught:
        error = _blamed_rightly(caught, trainer)
        if trainer.accelerator.is_main_process:
            run.write_failure(trainer.step, error)
        raise error from None
    try:
        trainer.write_student(run.student)
    except OSError as error:
        raise OSError(
            f"could not write the student: {error.strerror or error}. The last checkpoint has it; make room, then "
            "--resume writes it"
        ) from error


def _blamed_rightly(error: FloatingPointError, trainer: Trainer) -> FloatingPointError:
    """The error itself, or one that names the teacher's weights if these are the ones that are not finite."""
    name = first_non_finite(trainer.parts.roles.modules["teacher"])
    if name is None:
        return error
    return FloatingPointError(
        f"the teacher {trainer.plan.teacher.source} has weights that are not finite, the first is {name}; no setting "
        "of the training mends that, another copy of the model may"
    )


def _loop(
    trainer: Trainer, run: RunFolder, trackers: Trackers, *, progress: bool, callbacks: Sequence[Callback]
) -> None:
    """Iterate until the updates or the time are used up; log, save checkpoints and validate at their intervals."""
    plan, checkpoint, accelerator = trainer.plan, trainer.plan.checkpoint, trainer.accelerator
    last, finished = plan.budget.num_updates, trainer.is_finished()
    saved_step = trainer.step if trainer.step else None
    shown = progress and accelerator.is_main_process
    bar_of_run = progress_bar(last, run.root.name, unit="update", initial=trainer.step, shown=shown)
    with StopRequest() as stop, bar_of_run as bar:
        validate = partial(_validate, trainer, run, trackers)
        is_validated = on_main_process(lambda: any(row["step"] == trainer.step for row in read_rows(run.scores)))
        if trainer.step and _is_looked_at(trainer.step, plan.validation.every, finished) and not is_validated:
            validate()  # the run was killed after the checkpoint of this step
        while not finished:
            row = trainer.iterate()
            # All processes stop after the same step.
            signum = max(on_all_processes(partial(_log, run, trackers, row, stop)))
            for callback in callbacks:
                callback(row)
            bar.update(values=_shown(row, trainer.peak()))
            finished = trainer.is_finished()
            if signum or finished or _is_due(trainer.step, checkpoint.every):
                if checkpoint.students:
                    # Before the checkpoint: a run that is killed in between writes it again when resumed.
                    trainer.write_student(run.students / f"step-{trainer.step:06d}")
                trainer.save(run.checkpoints, wait=bool(signum) or finished)
                saved_step = trainer.step
            if signum:
                raise StoppedBySignal(
                    signum, f"stopped after step {trainer.step}; the checkpoint is saved, {_how_to_go_on(run)}"
                )
            if _is_looked_at(trainer.step, plan.validation.every, finished):
                validate()
    assert saved_step == trainer.step


def _how_to_go_on(run: RunFolder) -> str:
    return f"this goes on from it: dpdmd train {shlex.quote(str(run.root))} --resume"


def _shown(row: dict[str, float], peak: int) -> dict[str, str]:
    """What stands beside the progress: losses, the student's learning rate, the most memory of this process."""
    losses = {key.removeprefix("loss/"): f"{row[key]:.3g}" for key in row if key.startswith("loss/")}
    return losses | {"rate": f"{row['learning_rate']:.2g}", "memory": f"{peak / 2**30:.1f} GiB"}


def _log(run: RunFolder, trackers: Trackers, row: dict[str, float], stop: StopRequest) -> int:
    """Log the row of an update in the first process; returns the signal that this process received, 0 for none."""
    if rank_and_world_size()[0] == 0:
        log_row(run.metrics, row)
        trackers.log(row)
    return stop.signum


def _validate(trainer: Trainer, run: RunFolder, trackers: Trackers) -> None:
    """Draw the picture, keep the student if it is one of the best, log the scores.

    The scores come last: without their row a resumed run validates this step again. Training continues when something
    cannot be written.
    """
    step, before = trainer.step, on_main_process(lambda: read_rows(run.scores))
    try:
        row = trainer.draw_validation(run.validation)
        started = time.perf_counter()
        is_best = _keep_best(trainer, trainer.plan.checkpoint, run, [*before, row])
        row["validation/seconds"] += time.perf_counter() - started
        on_main_process(lambda: log_row(run.scores, row))
        trackers.log({key: value for key, value in row.items() if key == "step" or key.startswith("validation/")})
        trackers.log_picture(step, picture_path(run.validation, step))
    except OSError as error:
        logger.warning("step %d: no picture or scores (%s); training continues", step, error.strerror or error)
        return
    reported = before[-1]["alarms"] if before else {}
    for kind in row["alarms"].keys() - reported.keys():
        logger.warning("ALARM: %s", row["alarms"][kind])
    best = ", the best so far" if is_best else ""
    seconds = row["validation/seconds"]
    logger.info("step %d: %s%s; pictures in %s (%.1f s)", step, in_words(row), best, run.validation, seconds)
    slow = [too_slow(rows, trainer.plan.validation.every) for rows in (before, [*before, row])]
    if slow[1] and not slow[0]:
        logger.info("note: %s", slow[1])


def _keep_best(trainer: Trainer, checkpoint: CheckpointConfig, run: RunFolder, rows: list[dict[str, Any]]) -> bool:
    """Keep the student of the last row if it is one of the best; returns whether it is the best."""
    entries = [as_entry(row) for row in rows]
    if not checkpoint.best or entries[-1] is None:
        return False
    seen = [entry for entry in entries[:-1] if entry is not None]
    limits = {"number": checkpoint.best, "floor": checkpoint.diversity_floor}
    try:
        return keep_best(run.best, entries[-1], seen, trainer.write_student, **limits)
    except OSError as error:
        reason = error.strerror or error
        logger.warning("step %d: the best student is not kept (%s); training continues", trainer.step, reason)
        return False


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _is_looked_at(step: int, every: int, finished: bool) -> bool:
    """Whether the student of this step is validated: also the last one, of a run that is not shorter than `every`."""
    return _is_due(step, every) or (finished and 0 < every <= step)
