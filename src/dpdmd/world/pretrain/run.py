"""The recorded command that makes the built-in teacher: autoencoder, text encoders, transformer, pipeline folder."""

import json
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from dpdmd.files import read_tensors, write_tensors
from dpdmd.world.pretrain.autoencoder import train_autoencoder
from dpdmd.world.pretrain.card import IMAGES_PER_PROMPT, write_card
from dpdmd.world.pretrain.features import train_features
from dpdmd.world.pretrain.text_encoders import HIDDEN_SIZE, new_tokenizer, train_text_encoder
from dpdmd.world.pretrain.transformer import embedding_table, latent_cache, new_transformer, train_transformer

STAGES = ("autoencoder", "text", "transformer", "assemble", "features", "card")
NUM_SCENES = 120_000
NUM_STEPS = {"autoencoder": 1400, "text": 400, "features": 2400}
# The transformer is trained in rounds, each a warm-up, a constant and a cosine to zero, each at half the rate of the
# one before. A finished round is kept in its own file, so that an interrupted command loses at most one.
ROUNDS = (11_500, 10_000)
BATCH_SIZE = {"autoencoder": 64, "text": 256, "transformer": 192, "features": 128}
LEARNING_RATES = (6e-3, 3e-3)


def pretrain(out: str | Path, *, stage: str = "all", seed: int = 0, processes: int = 2, scale: float = 1.0) -> Path:
    """Train the built-in teacher from scratch into the folder `out`, stage by stage.

    Finished stages stand in `out`/parts and are not repeated, so an interrupted command can be called again.
    `scale` multiplies every number of steps (for a quick look at the machinery). Returns the pipeline folder.
    Raises ValueError for an unknown stage.
    """
    if stage not in ("all", *STAGES):
        raise ValueError(f"stage must be one of all, {', '.join(STAGES)}, got {stage!r}")
    parts = Path(out) / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    steps = {name: max(1, round(scale * number)) for name, number in NUM_STEPS.items()}
    num_scenes = max(1000, round(scale * NUM_SCENES))
    todo = STAGES if stage == "all" else (stage,)
    log = _logger(parts / "log.jsonl")
    if "autoencoder" in todo and not (parts / "vae").exists():
        train_autoencoder(steps["autoencoder"], BATCH_SIZE["autoencoder"], seed, log).save_pretrained(parts / "vae")
    if "text" in todo and not (parts / "text_encoder_2").exists():
        tokenizer = new_tokenizer()
        for i in (1, 2):
            encoder = train_text_encoder(tokenizer, steps["text"], BATCH_SIZE["text"], seed + i, log)
            encoder.save_pretrained(parts / f"text_encoder_{i}")
    if "transformer" in todo and not _round(parts, len(ROUNDS)).exists():
        _train_transformer(parts, num_scenes, [max(1, round(scale * number)) for number in ROUNDS], seed, processes)
    if "features" in todo:
        features = train_features(
            steps["features"], BATCH_SIZE["features"], seed, lambda text: log({"stage": "features", "message": text})
        )
        write_tensors(Path(out) / "scene_features.safetensors", features.state_dict())
    if "assemble" in todo:
        assemble(parts, Path(out) / "teacher")
    if "card" in todo:
        write_card(Path(out) / "teacher", parts / "log.jsonl", seed, max(2, round(scale * IMAGES_PER_PROMPT)))
    return Path(out) / "teacher"


def _logger(path: Path):
    started = time.time()

    def log(row: dict) -> None:
        with path.open("a") as file:
            file.write(json.dumps({**row, "elapsed": time.time() - started}) + "\n")

    return log


def _encoders(parts: Path) -> list[CLIPTextModelWithProjection]:
    return [CLIPTextModelWithProjection.from_pretrained(parts / f"text_encoder_{i}").eval() for i in (1, 2)]


def _round(parts: Path, number: int) -> Path:
    """Where the EMA weights after round `number` = 1, 2, ... stand."""
    return parts / f"transformer-{number}.safetensors"


def _train_transformer(parts: Path, num_scenes: int, num_steps: list[int], seed: int, processes: int) -> None:
    """Train the transformer in `processes` single-threaded processes that share every batch."""
    with tempfile.TemporaryDirectory() as rendezvous:
        mp.spawn(_worker, (parts, num_scenes, num_steps, seed, processes, rendezvous), nprocs=processes)


def _worker(
    rank: int, parts: Path, num_scenes: int, num_steps: list[int], seed: int, processes: int, rendezvous: str
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}/store", rank=rank, world_size=processes)
    vae = AutoencoderKL.from_pretrained(parts / "vae").eval()
    scenes, latents = latent_cache(vae, num_scenes, seed)
    table = embedding_table(new_tokenizer(), _encoders(parts))
    for number, steps in enumerate(num_steps, 1):
        if _round(parts, number).exists():
            continue
        transformer = train_transformer(
            scenes,
            latents,
            table,
            num_steps=steps,
            batch_size=BATCH_SIZE["transformer"],
            learning_rates=tuple(rate / 2 ** (number - 1) for rate in LEARNING_RATES),
            seed=seed,
            start=read_tensors(_round(parts, number - 1)) if number > 1 else None,
            first_step=sum(num_steps[: number - 1]),
            snapshot=parts / "snapshot.safetensors",
            log=_logger(parts / "log.jsonl") if rank == 0 else lambda row: None,
        )
        if rank == 0:
            write_tensors(_round(parts, number), transformer.state_dict())
        dist.barrier()
    dist.destroy_process_group()


def silent_t5(vocab_size: int) -> T5EncoderModel:
    """A one-layer T5 whose final norm is zero, so that every output is exactly zero.

    Stock diffusers treats a missing T5 as 256 zero embeddings, but loads a folder without one only when told so by
    argument. This says the same and loads like any other.
    """
    torch.manual_seed(0)
    config = T5Config(vocab_size=vocab_size, d_model=2 * HIDDEN_SIZE, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    encoder = T5EncoderModel(config)
    torch.nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder.eval()


def assemble(parts: Path, out: Path) -> None:
    """Put the trained parts together as a stock StableDiffusion3Pipeline folder, scheduler shift 3."""
    transformer = new_transformer()
    transformer.load_state_dict(read_tensors(_round(parts, len(ROUNDS))))
    tokenizer = new_tokenizer()
    first, second = _encoders(parts)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=AutoencoderKL.from_pretrained(parts / "vae"),
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer,
        text_encoder_3=silent_t5(len(tokenizer)),
        tokenizer_3=tokenizer,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
