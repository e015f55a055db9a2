"""Train the built-in teachers in stages: autoencoder, text encoders, denoising networks, pipelines."""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import DiffusionPipeline

from dpdmd.models.load import load_adapter
from dpdmd.store.tensors import read_tensors, write_tensors
from tools.pretrain.autoencoder import train_autoencoder
from tools.pretrain.card import IMAGES_PER_PROMPT, write_card
from tools.pretrain.denoiser import latent_cache, train_denoiser
from tools.pretrain.features import train_features
from tools.pretrain.pipelines import save_in_half_precision, sd3_pipeline, sdxl_pipeline
from tools.pretrain.text_encoders import new_tokenizer, train_text_encoder

NUM_SCENES = 120_000
NUM_STEPS = {"autoencoder": 1400, "text": 400, "features": 2400}
BATCH_SIZE = {"autoencoder": 64, "text": 256, "features": 128}


@dataclass(frozen=True)
class Teacher:
    """How the denoising network of a built-in teacher is trained and saved.

    pipeline: builds the pipeline with the untrained network. folder: name of the finished pipeline's folder.
    rounds: number of steps of each round. A round consists of a warm-up, a constant phase and a cosine decay to zero,
        at half the learning rate of the previous round. Every finished round is saved, so an interruption loses at most
        one.
    learning_rates: of Muon and AdamW. time_shift: shift of the noise levels in training; 1 = uniform.
    """

    pipeline: Callable[[Path], DiffusionPipeline]
    folder: str
    rounds: tuple[int, ...]
    batch_size: int
    learning_rates: tuple[float, float]
    time_shift: float


# The keys are the component names of the denoising networks, which are also the names of their stages.
TEACHERS = {
    "transformer": Teacher(sd3_pipeline, "teacher", (11_500, 10_000), 192, (6e-3, 3e-3), 1.5),
    "unet": Teacher(sdxl_pipeline, "teacher_eps", (8_000,), 128, (6e-3, 6e-3), 1.0),
}
STAGES = ("autoencoder", "text", *TEACHERS, "assemble", "features", "card")


def pretrain(out: str | Path, *, stage: str = "all", seed: int = 0, processes: int = 2, scale: float = 1.0) -> Path:
    """Train the built-in teachers from scratch, stage by stage, and return the folder `out` of the pipelines.

    Finished stages are saved in `out`/parts and not repeated, so an interrupted command can be run again.
    scale: factor for all numbers of steps; below 1 for a quick test.
    Raises ValueError for an unknown stage.
    """
    if stage not in ("all", *STAGES):
        raise ValueError(f"stage must be one of all, {', '.join(STAGES)}, got {stage!r}")
    out = Path(out)
    parts = out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    steps = {name: max(1, round(scale * number)) for name, number in NUM_STEPS.items()}
    todo = STAGES if stage == "all" else (stage,)
    log = logger(parts / "log.jsonl")
    if "autoencoder" in todo and not (parts / "vae").exists():
        train_autoencoder(steps["autoencoder"], BATCH_SIZE["autoencoder"], seed, log).save_pretrained(parts / "vae")
    if "text" in todo and not (parts / "text_encoder_2").exists():
        tokenizer = new_tokenizer()
        for i in (1, 2):
            encoder = train_text_encoder(tokenizer, steps["text"], BATCH_SIZE["text"], seed + i, log)
            encoder.save_pretrained(parts / f"text_encoder_{i}")
    for name in TEACHERS:
        if name in todo and not _trained(parts, name).exists():
            _train(parts, name, seed, processes, scale)
    if "features" in todo:
        features = train_features(
            steps["features"], BATCH_SIZE["features"], seed, lambda text: log({"stage": "features", "message": text})
        )
        write_tensors(out / "scene_features.safetensors", features.state_dict())
    for name, teacher in TEACHERS.items():
        if "assemble" in todo and _trained(parts, name).exists():
            assemble(parts, name, out / teacher.folder)
        if "card" in todo and (out / teacher.folder).exists():
            write_card(out / teacher.folder, parts / "log.jsonl", name, seed, max(2, round(scale * IMAGES_PER_PROMPT)))
    return out


def logger(path: Path) -> Callable[[dict], None]:
    """A function that appends a row to the JSON lines `path`, with the seconds since now."""
    started = time.time()

    def log(row: dict) -> None:
        with path.open("a") as file:
            file.write(json.dumps({**row, "elapsed": time.time() - started}) + "\n")

    return log


def _round(parts: Path, name: str, number: int) -> Path:
    """The file of the EMA weights after round `number` = 1, 2, ..."""
    return parts / f"{name}-{number}.safetensors"


def _trained(parts: Path, name: str) -> Path:
    return _round(parts, name, len(TEACHERS[name].rounds))


def _train(parts: Path, name: str, seed: int, processes: int, scale: float) -> None:
    """Train a network in `processes` single-threaded processes that share every batch."""
    with tempfile.TemporaryDirectory() as shared:
        TEACHERS[name].pipeline(parts).save_pretrained(Path(shared, "untrained"))
        arguments = (parts, name, TEACHERS[name], seed, processes, scale, Path(shared))
        mp.spawn(_worker, arguments, nprocs=processes)


def _worker(
    rank: int, parts: Path, name: str, teacher: Teacher, seed: int, processes: int, scale: float, shared: Path
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{shared}/store", rank=rank, world_size=processes)
    adapter = load_adapter(str(shared / "untrained"))
    scenes, latents = latent_cache(adapter.vae, max(1000, round(scale * NUM_SCENES)), seed)
    rounds = [max(1, round(scale * steps)) for steps in teacher.rounds]
    for number, steps in enumerate(rounds, 1):
        if _round(parts, name, number).exists():
            continue
        network = train_denoiser(
            adapter,
            scenes,
            latents,
            num_steps=steps,
            batch_size=teacher.batch_size,
            learning_rates=tuple(rate / 2 ** (number - 1) for rate in teacher.learning_rates),
            time_shift=teacher.time_shift,
            seed=seed,
            start=read_tensors(_round(parts, name, number - 1)) if number > 1 else None,
            first_step=sum(rounds[: number - 1]),
            snapshot=parts / f"{name}-snapshot.safetensors",
            name=name,
            log=logger(parts / "log.jsonl") if rank == 0 else lambda row: None,
        )
        if rank == 0:
            write_tensors(_round(parts, name, number), network.state_dict())
        dist.barrier()
    dist.destroy_process_group()


def assemble(parts: Path, name: str, out: Path) -> None:
    """Write the trained components as a stock pipeline folder."""
    pipeline = TEACHERS[name].pipeline(parts)
    getattr(pipeline, name).load_state_dict(read_tensors(_trained(parts, name)))
    save_in_half_precision(pipeline, out)
