"""`student.json`, which stands next to a student's weights and says how it is sampled.

A folder with it holds student.safetensors (all weights) or pytorch_lora_weights.safetensors (a LoRA for the base), or
is an exported pipeline. `models.find` says in which folders of a run students are.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, computed_field, field_validator

from dpdmd.method.grids import Grid
from dpdmd.method.rollout import StudentKind
from dpdmd.store.digests import sha256_of
from dpdmd.store.files import write_json
from dpdmd.store.state import Count, Sha256, State, read_state

STUDENT_FOLDER = "student"
STUDENT_FILE = "student.json"
WEIGHTS_FILE = "student.safetensors"
LORA_FILE = "pytorch_lora_weights.safetensors"
BEST_FILE = "best.json"
STATE_FILE = "state.json"  # of a checkpoint: the SHA-256 of its files, among others
AVERAGE = "ema"  # name of the averaged weights in a checkpoint


class CheckpointFile(State):
    """state.json of a checkpoint; what a resumed run must share with it is among its further keys."""

    step: Count
    seconds: float = 0.0
    peak_memory_bytes: Count = 0
    sha256: dict[str, Sha256]


class BestPlace(State):
    """One of the best students of a run, by its folder; `training.validation.best` says more of it."""

    folder: str = Field(pattern=r"^step-\d+$")


class BestFile(State):
    """best.json: the best students of a run, the best first."""

    students: list[BestPlace]


class BaseLora(BaseModel):
    """A LoRA that is part of a teacher."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    path: str = Field(min_length=1, description="A .safetensors file, a folder with one, or a hub id.")
    weight: float = Field(default=1.0, description="Factor of what it adds to the weights.")


class StudentSize(BaseModel):
    """One of several sizes that a student was trained at."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    height: int = Field(ge=1, lt=2**31, description="Height of the images in pixels.")
    width: int = Field(ge=1, lt=2**31, description="Width of the images in pixels.")
    grid: tuple[float, ...] = Field(max_length=1001, description="Times of the steps at this size.")

    @field_validator("grid")
    @classmethod
    def _is_grid(cls, times: tuple[float, ...]) -> tuple[float, ...]:
        return Grid(times).times


class StudentFile(BaseModel):
    """What a student was made of and how it is sampled; only `base` and `grid` are required.

    Keys that this version does not know are ignored, so that files of other versions can be read.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    base: str = Field(min_length=1, description="The teacher: a built-in name, an absolute folder or a hub id.")
    base_loras: tuple[BaseLora, ...] = Field(
        default=(), description="LoRAs that are merged into the base: together they are the teacher."
    )
    contains_loras: bool = Field(
        default=False, description="Whether the LoRA in the same folder contains base_loras; other weights always do."
    )
    grid: tuple[float, ...] = Field(
        max_length=1001, description="Times of the steps, N + 1 values from noise (at most 1) to data (0)."
    )
    guidance_scale: float = Field(default=1.0, ge=1, description="Classifier-free guidance when sampling; 1 = off.")
    kind: StudentKind = Field(default="ode", description='How a step is taken: "ode", "renoise" or "renoise_last".')
    negative_prompt: str = Field(
        default="", description="What its teacher was guided away from; the student itself takes no negative prompt."
    )
    embedded_guidance: float | None = Field(
        default=None, description="Guidance that the network is fed as an input; null for a network that takes none."
    )
    height: int | None = Field(
        default=None, ge=1, lt=2**31, description="Height of the images in pixels; null for the base's own."
    )
    width: int | None = Field(
        default=None, ge=1, lt=2**31, description="Width of the images in pixels; null for the base's own."
    )
    sizes: tuple[StudentSize, ...] = Field(
        default=(), description="All sizes of a student of several, the first as above; empty for one size."
    )
    objective: str = Field(default="unknown", description="Name of the objective that the student was trained with.")
    updates: int = Field(default=0, ge=0, description="Student updates done.")
    seconds: float | None = Field(default=None, description="Training time in seconds, without validation.")
    peak_memory_bytes: int | None = Field(
        default=None, description="Most memory of the main process in bytes: of the GPU if there is one, else resident."
    )
    base_parts: dict[str, str] = Field(
        default={}, description="SHA-256 of each part of the base when the student was trained; {} in older files."
    )
    weights_sha256: str | None = Field(
        default=None,
        description="SHA-256 of the weights file in the same folder; null for an exported pipeline and in older files.",
    )

    @computed_field(description="N, the number of network calls per image.")
    @property
    def num_inference_steps(self) -> int:
        """N, the number of network calls per image."""
        return len(self.grid) - 1

    @field_validator("grid")
    @classmethod
    def _is_grid(cls, times: tuple[float, ...]) -> tuple[float, ...]:
        return Grid(times).times

    @property
    def image_size(self) -> tuple[int | None, int | None] | None:
        """(height, width), or None if both are the base's own."""
        return None if self.height is None and self.width is None else (self.height, self.width)

    def loras_to_merge(self, folder: str | Path) -> tuple[BaseLora, ...]:
        """Those of `base_loras` that the base needs before the weights in `folder` are applied to it."""
        is_lora = student_weights(folder) == Path(folder) / LORA_FILE
        return self.base_loras if is_lora and not self.contains_loras else ()

    @classmethod
    def read(cls, folder: str | Path) -> "StudentFile":
        """Read `folder`/student.json. Raises ValueError naming the file when it is missing or broken."""
        return read_state(Path(folder) / STUDENT_FILE, cls)

    def write(self, folder: str | Path) -> None:
        """Write `folder`/student.json atomically, with the SHA-256 of the weights that are there already."""
        weights = student_weights(folder)
        digest = None if weights is None or weights.is_dir() else sha256_of(weights)
        info = self.model_copy(update={"weights_sha256": digest})
        write_json(Path(folder) / STUDENT_FILE, info.model_dump(mode="json"))

    def require_its_weights(self, folder: str | Path) -> None:
        """Raises ValueError when the weights in `folder` are not those that student.json was written for.

        It reads the whole file. A student without a SHA-256 passes: it was written by an earlier version.
        """
        weights = student_weights(folder)
        if weights is None:
            return
        expected = {weights.name: self.weights_sha256}
        if (Path(folder) / STATE_FILE).is_file():  # a checkpoint
            sums = read_state(Path(folder) / STATE_FILE, CheckpointFile).sha256
            expected = {name: sums[name] for name in sums if name.partition("/")[0] == weights.name}
        for name, digest in expected.items():
            if digest not in (None, sha256_of(Path(folder) / name)):
                raise ValueError(
                    f"{Path(folder) / name} has changed since it was written: its SHA-256 is not the recorded one; "
                    "copy it again, or let `dpdmd train RUN --resume` write it again from the run's last checkpoint"
                )

    def how_to_move_base(self, folder: str | Path) -> str:
        """What to do, for the end of a message, where the base or a LoRA of it is not there; else ""."""
        names = [("base", "model.teacher", self.base)]
        names += [("base_loras", "model.loras", lora.path) for lora in self.loras_to_merge(folder)]
        moved = [(key, setting) for key, setting, name in names if Path(name).is_absolute() and not Path(name).exists()]
        if not moved:
            return ""
        key, setting = moved[0]
        if (Path(folder) / STATE_FILE).is_file():  # which has the hash of student.json
            return f". If it was moved, go on with the run by `dpdmd train RUN --resume --set {setting}=NEW_PLACE`"
        return f'. If it was moved, write its new place as "{key}" into {Path(folder) / STUDENT_FILE}'


def student_weights(folder: str | Path) -> Path | None:
    """The file with a student's LoRA, else the one with all its weights; None if the folder has neither.

    A checkpoint has the student's averaged weights under another name, and of a sharded run it has a folder of shares.
    """
    names = (LORA_FILE, f"{AVERAGE}.safetensors", AVERAGE, WEIGHTS_FILE, STUDENT_FOLDER)
    found = (path for name in names if (path := Path(folder) / name).exists())
    return next((path for path in found if path.is_file() or any(path.glob("*.safetensors"))), None)


def exported_student(source: str | Path) -> StudentFile | None:
    """The student.json of an exported pipeline; None for any other pipeline folder and for a hub id.

    Raises ValueError for a broken file.
    """
    return StudentFile.read(source) if (Path(source) / STUDENT_FILE).is_file() else None
