"""Which model a name stands for, by content: a model that was moved is the same, one whose files changed is another."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from dpdmd.models.find import find_student, located
from dpdmd.models.load import BUILT_IN, built_in_teacher
from dpdmd.models.parts import local_folder
from dpdmd.models.pipeline_files import parts_of, read_index
from dpdmd.models.student_file import BaseLora, StudentFile, exported_student, student_weights
from dpdmd.store.cache import hash_memo
from dpdmd.store.digests import files_digest, key_of
from dpdmd.store.names import local_or_hub_id

logger = logging.getLogger(__name__)

# What student.json says of how a student is sampled; the rest is about its training.
SAMPLING = {"grid", "guidance_scale", "kind", "embedded_guidance", "height", "width", "sizes"}


def model_identity(
    model: str, *, loras: Sequence[BaseLora] = (), without: Collection[str] = (), memo: Path | None = None
) -> str:
    """SHA-256 of all that a model's images depend on: weights, LoRA, text encoders, configurations, grid and size.

    model: as `models.load.load_sampler` takes it. loras: those that are merged into it. without: parts of the pipeline
    to leave out, such as "vae" where only latents matter. memo: the folder that remembers hashes of files; default: in
    the user's cache.
    Raises ValueError if there is no such model.
    """
    model = located(model)
    if loras:
        return key_of(model_identity(model, without=without, memo=memo), *loras_identity(loras, memo=memo))
    if (student := find_student(model)) is not None:
        info = StudentFile.read(student)
        weights = student_weights(student)
        assert weights is not None, "a student has weights"
        files = {path.name: path for path in (sorted(weights.iterdir()) if weights.is_dir() else [weights])}
        merged = info.loras_to_merge(student)
        base = model_identity(info.base, loras=merged, without=without, memo=memo)
        return key_of(base, _sampling(info), files_digest(files, memo=memo or hash_memo()))
    source = str(built_in_teacher(model)) if model in BUILT_IN else model
    pipeline = pipeline_identity(source, without=without, memo=memo)
    info = exported_student(source)
    return pipeline if info is None else key_of(pipeline, _sampling(info))


def pipeline_identity(source: str, *facts: str, without: Collection[str] = (), memo: Path | None = None) -> str:
    """SHA-256 of `facts` and of the parts of a diffusers pipeline, a folder or hub id, but those named in `without`.

    A part counts with every file in its folder that is not hidden, model_index.json with its settings. Raises
    ValueError if there is no such pipeline.
    """
    base = local_folder(source)
    index = read_index(base)
    parts = [name for name in parts_of(index) if name not in without]
    settings = {key: value for key, value in index.items() if key[0] != "_" and not isinstance(value, list)}
    return files_digest(
        _files(base, parts),
        str(index.get("_class_name")),
        repr(sorted(settings.items())),
        *facts,
        memo=memo or hash_memo(),
    )


def lora_identity(lora: str, base: str, loras: Sequence[BaseLora] = ()) -> str:
    """SHA-256 of a LoRA, a file, a folder or a hub id that has been downloaded, and of the model that it is for.

    loras: those of that model.
    """
    return key_of(model_identity(base, loras=loras), _lora_files(lora))


def loras_identity(loras: Sequence[BaseLora], *, memo: Path | None = None) -> list[str]:
    """SHA-256 of the content and the weight of each LoRA of a base."""
    return [key_of(_lora_files(lora.path, memo), repr(lora.weight)) for lora in loras]


def _lora_files(lora: str, memo: Path | None = None) -> str:
    place = Path(local_or_hub_id(lora))
    if place.is_file():
        files = {"lora": place}
    else:
        if not place.is_dir():
            from huggingface_hub import snapshot_download

            place = Path(snapshot_download(lora, allow_patterns="*.safetensors", local_files_only=True))
        files = {path.name: path for path in place.glob("*.safetensors")}
    return files_digest(files, memo=memo or hash_memo())


def part_identities(source: str, *, memo: Path | None = None) -> dict[str, str]:
    """{part: SHA-256} of a pipeline, a folder, built-in name or hub id, to say which of its parts have changed.

    {} for any other name: of the source of an adapter that is not one of ours.
    """
    source = str(built_in_teacher(source)) if source in BUILT_IN else source
    is_pipeline = (Path(source) / "model_index.json").is_file() if Path(source).exists() else "/" in source
    if not is_pipeline:
        return {}
    base = local_folder(source)
    memo = memo or hash_memo()
    return {name: files_digest(_files(base, [name]), memo=memo) for name in sorted(parts_of(read_index(base)))}


def teacher_parts(source: str, loras: Sequence[BaseLora] = (), *, memo: Path | None = None) -> dict[str, str]:
    """`part_identities` of a teacher, with its LoRAs as further parts "LoRA 1", "LoRA 2", ..."""
    named = {f"LoRA {i}": digest for i, digest in enumerate(loras_identity(loras, memo=memo), start=1)}
    return part_identities(source, memo=memo) | named


def start_identity(source: str, *, is_lora: bool) -> str:
    """SHA-256 of what a student starts from: a model, or for `is_lora` also a LoRA's file, folder or hub id."""
    is_model = not is_lora or find_student(located(source)) is not None
    return model_identity(source) if is_model else _lora_files(source)


def warn_of_another_base(student: Path, info: StudentFile) -> None:
    """Log which parts of a student's base are not those that it was trained with, if any."""
    merged = info.loras_to_merge(student)
    now = teacher_parts(info.base, merged) if info.base_parts else {}
    needed = [name for name in info.base_parts if merged or not name.startswith("LoRA ")]
    changed = [name for name in needed if now.get(name) != info.base_parts[name]]
    if changed:
        logger.warning(
            "%s: its base %s has changed since the student was trained (%s): its images may be others",
            student,
            info.base,
            ", ".join(changed),
        )


def _files(base: Path, parts: list[str]) -> dict[str, Path]:
    found = ((path.relative_to(base), path) for name in parts for path in (base / name).rglob("*") if path.is_file())
    return {name.as_posix(): path for name, path in found if not any(part.startswith(".") for part in name.parts)}


def _sampling(info: StudentFile) -> str:
    return info.model_dump_json(include=SAMPLING if info.sizes else SAMPLING - {"sizes"})
