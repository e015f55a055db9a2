"""The run folder: what it holds, when it may be written to, and what a resumed run must not change.

recipe.toml  provenance.json  metrics.jsonl  checkpoints/  validation/  students/  student/  failure.json
and of trackers tensorboard/  wandb/
"""

import hashlib
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dpdmd.distributed.processes import on_all_processes, on_main_process
from dpdmd.models.student_file import STUDENT_FILE
from dpdmd.recipe.optimisers import OFFLOADED
from dpdmd.recipe.schema import Recipe
from dpdmd.recipe.toml import flatten, load_recipe, recipe_keys
from dpdmd.store.files import remove_folder, require_place, require_writable, write_json, write_text
from dpdmd.store.leftovers import remove_leftovers
from dpdmd.store.provenance import surroundings
from dpdmd.store.state import Count, State, state_or_none
from dpdmd.training.run.checkpoint import remove_partial
from dpdmd.training.run.identity import BY_CONTENT
from dpdmd.training.validation.best import remove_strays

PARTS = (
    "recipe.toml",
    "provenance.json",
    "metrics.jsonl",
    "checkpoints",
    "validation",
    "students",
    "student",
    "failure.json",
    "tensorboard",
    "wandb",
)
# A resumed run may change these and nothing else.
FREE_SECTIONS = ("output", "validation", "checkpoint")
# How long and how fast it learns may change on the way. The product of accumulation and processes is checked with the
# checkpoint. How networks are spread, what is recomputed and what is cached change memory and time alone.
FREE_KEYS = (
    "train.num_updates",
    "train.max_seconds",
    "train.learning_rate",
    "train.fake_learning_rate",
    "objective.adversarial.learning_rate",
    "train.accumulation",
    "train.shard",
    "train.gradient_checkpointing",
    "data.cache",
)


def binding_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings {dotted key: value} that a resumed run must not change; what it reads is compared by content."""
    free = (*FREE_KEYS, *BY_CONTENT)
    bound = {
        key: value for key, value in settings.items() if key.partition(".")[0] not in FREE_SECTIONS and key not in free
    }
    if bound.get("train.optimiser") == OFFLOADED:
        bound["train.optimiser"] = "adamw"  # the same numbers in another place
    return bound


def binding_digest(settings: dict[str, Any], schema: type[Recipe] = Recipe) -> str:
    """SHA-256 of the binding settings that differ from their defaults.

    So a run can continue under a release with a new key, whose default keeps the old behaviour. A default that a
    release changes is not noticed here, but by comparison with the run folder's recipe.toml, which has every value.
    """
    defaults = {key: field.get_default() for key, field in recipe_keys(schema)}
    chosen = {key: value for key, value in binding_settings(settings).items() if value != defaults[key]}
    return hashlib.sha256(repr(sorted(chosen.items())).encode()).hexdigest()


class ProvenanceFile(State):
    """provenance.json: of its facts those that are read again, and the sessions of the run."""

    sessions: list[dict[str, Any]] | None = None
    forwards_per_update: float | None = None
    backwards_per_update: float | None = None
    extra_parameters: dict[str, Count] | None = None


class FailureFile(State):
    """failure.json."""

    step: Count
    error: str


class RunFolder:
    """Paths of one run; only the main process writes."""

    def __init__(self, folder: str | Path):
        self.root = Path(folder)
        self.recipe = self.root / "recipe.toml"
        self.provenance = self.root / "provenance.json"
        self.metrics = self.root / "metrics.jsonl"
        self.checkpoints = self.root / "checkpoints"
        self.validation = self.root / "validation"
        self.scores = self.validation / "scores.jsonl"
        self.students = self.root / "students"
        self.best = self.students / "best"
        self.student = self.root / "student"
        self.failure = self.root / "failure.json"

    def kept_students(self) -> dict[int, Path]:
        """{student updates done: folder} of the students that checkpoint.students keeps, early ones first."""
        found = [path for path in self.students.glob("step-*") if (path / STUDENT_FILE).is_file()]
        return {int(path.name.removeprefix("step-")): path for path in sorted(found)}

    def has_run(self) -> bool:
        """Whether a run was started here."""
        return any((self.root / name).exists() for name in PARTS)

    def refuse_if_unusable(self, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Raises ValueError when the folder may not be used as asked, OSError when it cannot be written to."""
        if resume and overwrite:
            raise ValueError("choose --resume or --overwrite, not both")
        require_place(self.root, "output.folder")
        require_writable(self.recipe, "into output.folder")
        if not self.has_run() or overwrite:
            return
        if not resume:
            raise ValueError(
                f"{self.root} already holds a run: go on with it by --resume, replace it by --overwrite, or choose "
                "another output.folder"
            )
        if self.recipe.exists():
            self._refuse_other_settings(settings)

    def _refuse_other_settings(self, settings: dict[str, Any]) -> None:
        old, new = binding_settings(flatten(load_recipe(self.recipe))), binding_settings(settings)
        changed = [f"{key}: the run has {old[key]!r}, the recipe {new[key]!r}" for key in new if old[key] != new[key]]
        if changed:
            raise ValueError(
                "\n  ".join([f"{self.root} cannot be resumed with other settings:", *changed])
                + f"\nOnly {', '.join(FREE_KEYS)}, the places of what it reads, and [{'], ['.join(FREE_SECTIONS)}] may "
                "change; otherwise choose another output.folder"
            )

    def changed_settings(self, settings: dict[str, Any]) -> dict[str, list[Any]]:
        """{dotted key: [before, now]} of settings that differ from when the run was last started here."""
        if not self.recipe.exists():
            return {}
        old = flatten(load_recipe(self.recipe))
        return {key: [old[key], now] for key, now in settings.items() if old[key] != now}

    def require_room(self, checkpoint_bytes: int, *, keep: int) -> list[str]:
        """Raises OSError when the disk has no room for one checkpoint of that size.

        Returns a note when it has no room for all that exist at a time, `keep` + 1.
        """
        free = shutil.disk_usage(require_writable(self.recipe)).free
        rooms = f"{self.root} has {free / 2**30:.1f} GiB free, and a checkpoint takes {checkpoint_bytes / 2**30:.1f}"
        if free < checkpoint_bytes:
            raise OSError(f"{rooms}: make room or choose another output.folder")
        missing = keep + 1 - len(list(self.checkpoints.glob("step-*")))
        if free < missing * checkpoint_bytes:
            return [f"{rooms}; with checkpoint.keep {keep} there will be {keep + 1} at a time"]
        return []

    @contextmanager
    def removed_on_failure(self) -> Iterator[None]:
        """Remove again, if the block fails, the folders that were made in it and are still empty."""
        new = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        try:
            yield
        except BaseException:
            with suppress(OSError):  # not empty: the run has begun, or the folder is used by others as well
                for folder in new:
                    folder.rmdir()
            raise

    def require_shared(self) -> None:
        """Make the folder. Raises ValueError in all processes when one of them sees another folder of that name."""

        def leave_a_token() -> Path:
            self.root.mkdir(parents=True, exist_ok=True)
            token = self.root / f".{secrets.token_hex(8)}.tmp"
            token.touch()
            return token

        token = on_main_process(leave_a_token)
        there = on_all_processes(token.exists)
        on_main_process(lambda: token.unlink())
        if not all(there):
            raise ValueError(
                f"output.folder {self.root} is another folder for process {there.index(False)} than for the first: all "
                "machines must share it"
            )

    def prepare(self, recipe_toml: str, *, overwrite: bool) -> None:
        """Make the folder and write the recipe into it; with `overwrite` an earlier run's files are removed first."""
        if overwrite:
            for name in PARTS:
                path = self.root / name
                if path.is_dir():
                    remove_folder(path)
                else:
                    path.unlink(missing_ok=True)
        self._remove_leftovers()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_text(self.recipe, recipe_toml)
        except OSError as error:
            raise OSError(f"cannot write to output.folder {self.root}: {error.strerror}") from error

    def _remove_leftovers(self) -> None:
        """Remove what a killed training has begun to write; what others write next to it stays."""
        remove_leftovers(self.root)
        remove_partial(self.checkpoints)
        for part in (self.root / name for name in PARTS):
            if part.is_dir():
                remove_leftovers(part, alone=True, deep=True)
            else:
                remove_leftovers(self.root, of=part.stem, alone=True)

    def forget_after(self, step: int) -> None:
        """Remove what an earlier session left after `step`: later students, unnamed best students, failure.json."""
        self.failure.unlink(missing_ok=True)
        for later in (path for done, path in self.kept_students().items() if done > step):
            remove_folder(later)
        remove_strays(self.best)

    def write_failure(self, step: int, error: Exception) -> None:
        """`failure.json`: why the run cannot go on after `step`."""
        write_json(self.failure, {"step": step, "error": str(error)})

    def write_provenance(self, facts: dict[str, Any], session: dict[str, Any], *, from_step: int) -> None:
        """`provenance.json`: `facts` of the run, and under "sessions" when, where and with what each session ran.

        session: more about this session.
        """
        known = state_or_none(self.provenance, ProvenanceFile) if from_step else None
        before = (known and known.sessions) or []
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        session = {"from_step": from_step, "started": started, **session, **surroundings()}
        write_json(self.provenance, {**facts, "sessions": [*before, session]})
