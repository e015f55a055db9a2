"""Train the teacher of the drawings in stages: autoencoder, text encoders, network, decoder again, pipeline, card."""

import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from dpdmd.models.load import load_adapter
from dpdmd.store.tensors import read_tensors, write_tensors
from tools.pretrain.card import NUM_INFERENCE_STEPS
from tools.pretrain.drawings import card
from tools.pretrain.drawings.autoencoder import train_autoencoder
from tools.pretrain.drawings.denoiser import train_denoiser
from tools.pretrain.drawings.finish import finish_decoder
from tools.pretrain.drawings.pipeline import new_pipeline
from tools.pretrain.drawings.text_encoders import new_tokenizer, train_text_encoder
from tools.pretrain.pipelines import save_in_half_precision
from tools.pretrain.run import logger

STAGES = ("autoencoder", "text", "transformer", "finish", "assemble", "card")
NUM_STEPS = {
    "encoder": 1500,
    "decoder": 6000,
    "decoder_2": 3500,
    "decoder_3": 2000,
    "decoder_4": 2800,
    "text": 1200,
    "transformer": 5600,
}
BATCH_SIZE = {"autoencoder": 16, "text": 128, "transformer": 128}
LEARNING_RATES = (1e-2, 4e-3)  # of Muon and AdamW
TIME_SHIFT = 1.0
FOLDER = "teacher"


def pretrain_drawings(out: str | Path, *, stage: str = "all", seed: int = 0, scale: float = 1.0) -> Path:
    """Train the teacher of the drawings from scratch, and return the folder `out`, in which the pipeline is `teacher`.

    Finished stages are saved in `out`/parts and not repeated, and the denoising network continues from its last
    snapshot, so an interrupted command can be run again. scale: factor for all numbers of steps; below 1 for a test.
    Raises ValueError for an unknown stage.
    """
    if stage not in ("all", *STAGES):
        raise ValueError(f"stage must be one of all, {', '.join(STAGES)}, got {stage!r}")
    torch.set_num_threads(1)  # networks this small are no faster with more
    out = Path(out)
    parts, teacher = out / "parts", out / FOLDER
    parts.mkdir(parents=True, exist_ok=True)
    steps = {name: max(1, round(scale * number)) for name, number in NUM_STEPS.items()}
    todo = STAGES if stage == "all" else (stage,)
    log = logger(parts / "log.jsonl")
    if "autoencoder" in todo and not (parts / "vae").exists():
        train_autoencoder(steps, BATCH_SIZE["autoencoder"], seed, log).save_pretrained(parts / "vae")
    if "text" in todo:
        for number in (1, 2):
            if not (parts / f"text_encoder_{number}").exists():
                encoder = train_text_encoder(new_tokenizer(), number, steps["text"], BATCH_SIZE["text"], seed, log)
                encoder.save_pretrained(parts / f"text_encoder_{number}")
    if "transformer" in todo and not (parts / "transformer.safetensors").exists():
        _train_transformer(parts, steps["transformer"], seed, log)
    if "finish" in todo and not (parts / "finished_vae").exists():
        _finish(parts, steps, seed, log)
    if "assemble" in todo:
        assemble(parts, teacher)
    if "card" in todo:
        card.write_card(teacher, parts / "log.jsonl", seed, max(2, round(scale * card.IMAGES_PER_PROMPT)))
    return out


def _train_transformer(parts: Path, num_steps: int, seed: int, log) -> None:
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as untrained:
        new_pipeline(parts).save_pretrained(untrained)
        adapter = load_adapter(untrained)
        network = train_denoiser(
            adapter,
            num_steps=num_steps,
            batch_size=BATCH_SIZE["transformer"],
            learning_rates=LEARNING_RATES,
            time_shift=TIME_SHIFT,
            seed=seed,
            snapshot=parts / "transformer-snapshot.safetensors",
            log=log,
        )
    write_tensors(parts / "transformer.safetensors", network.state_dict())


def _finish(parts: Path, num_steps: dict[str, int], seed: int, log) -> None:
    with tempfile.TemporaryDirectory() as untrained:
        pipeline = new_pipeline(parts)
        pipeline.save_pretrained(untrained)
        adapter = load_adapter(untrained)
        network = adapter.load_network().eval()
        network.load_state_dict(read_tensors(parts / "transformer.safetensors"))
        vae = finish_decoder(
            pipeline.vae,
            adapter,
            network,
            num_inference_steps=NUM_INFERENCE_STEPS,
            num_steps=num_steps,
            batch_size=BATCH_SIZE["autoencoder"],
            seed=seed,
            log=log,
        )
    vae.save_pretrained(parts / "finished_vae")


def assemble(parts: Path, out: Path) -> None:
    """Write the trained components as a stock pipeline folder."""
    pipeline = new_pipeline(parts)
    pipeline.vae = AutoencoderKL.from_pretrained(parts / "finished_vae")
    pipeline.transformer.load_state_dict(read_tensors(parts / "transformer.safetensors"))
    save_in_half_precision(pipeline, out)
