"""Which model a name stands for, by content: a model that was moved is the same, one whose files changed is another."""

from collections.abc import Collection
from pathlib import Path

from dpdmd.models.find import find_student, located
from dpdmd.models.load import BUILT_IN, built_in_teacher
from dpdmd.models.parts import local_folder
from dpdmd.models.student_file import StudentFile, exported_student, student_weights
from dpdmd.store.cache import cache_folder
from dpdmd.store.digests import files_digest, key_of
from dpdmd.store.files import read_json
from dpdmd.store.names import local_or_hub_id

# What student.json says of how a student is sampled; the rest is about its training.
SAMPLING = {"grid", "guidance_scale", "kind", "embedded_guidance", "height", "width"}


def model_identity(model: str, *, without: Collection[str] = (), memo: Path | None = None) -> str:
    """SHA-256 of all that a model's images depend on: weights, LoRA, text encoders, configurations, grid and size.

    model: as `models.load.load_sampler` takes it. without: parts of the pipeline to leave out, such as "vae" where only
    latents matter. memo: the folder that remembers hashes of files; default: in the user's cache.
    Raises ValueError if there is no such model.
    """
    model = located(model)
    if (student := find_student(model)) is not None:
        info = StudentFile.read(student)
        weights = student_weights(student)
        assert weights is not None, "a student has weights"
        files = {path.name: path for path in (sorted(weights.iterdir()) if weights.is_dir() else [weights])}
        base = model_identity(info.base, without=without, memo=memo)
        return key_of(base, _sampling(info), files_digest(files, memo=memo or default_memo()))
    source = str(built_in_teacher(model)) if model in BUILT_IN else model
    pipeline = pipeline_identity(source, without=without, memo=memo)
    info = exported_student(source)
    return pipeline if info is None else key_of(pipeline, _sampling(info))


def pipeline_identity(source: str, *facts: str, without: Collection[str] = (), memo: Path | None = None) -> str:
    """SHA-256 of `facts` and of the parts of a diffusers pipeline, a folder or hub id, but those named in `without`.

    A part counts with every file in its folder, model_index.json with its settings. Raises ValueError if there is no
    such pipeline.
    """
    base = local_folder(source)
    index = read_json(base / "model_index.json")
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0] and name not in without]
    settings = {key: value for key, value in index.items() if key[0] != "_" and not isinstance(value, list)}
    files = (path for name in parts for path in (base / name).rglob("*") if path.is_file())
    return files_digest(
        {path.relative_to(base).as_posix(): path for path in files},
        str(index.get("_class_name")),
        repr(sorted(settings.items())),
        *facts,
        memo=memo or default_memo(),
    )


def lora_identity(lora: str, base: str) -> str:
    """SHA-256 of a LoRA, a file, a folder or a hub id that has been downloaded, and of the model that it is for."""
    place = Path(local_or_hub_id(lora))
    if place.is_file():
        files = {"lora": place}
    else:
        if not place.is_dir():
            from huggingface_hub import snapshot_download

            place = Path(snapshot_download(lora, allow_patterns="*.safetensors", local_files_only=True))
        files = {path.name: path for path in place.glob("*.safetensors")}
    return key_of(model_identity(base), files_digest(files, memo=default_memo()))


def default_memo() -> Path | None:
    """The folder that remembers hashes of files by default; None if there is no place for it."""
    try:
        return cache_folder("hashes")
    except ValueError:
        return None


def _sampling(info: StudentFile) -> str:
    return info.model_dump_json(include=SAMPLING)
