"""What becomes of a LoRA student on another fine-tune of its base, as people use few-step LoRAs?

    python -m benchmarks.other_base            three minutes on one quiet core

The built-in teacher is fine-tuned briefly on scenes with large shapes alone. A LoRA student of the teacher that ships
is trained briefly and exported, then `dpdmd audit` judges the same LoRA on its own teacher and on the fine-tune.

An interrupted command can be run again: what is finished in --out is not repeated. Writes
benchmarks/results/other_base.json and prints a table.
"""

import argparse
import shutil
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL

import dpdmd
from benchmarks.pareto_page import markdown
from dpdmd.audit import audit
from dpdmd.method.losses import denoising_loss
from dpdmd.method.paths import add_noise
from dpdmd.method.randomness import generator
from dpdmd.models.load import built_in_teacher, load_adapter
from dpdmd.publish.export import export_run
from dpdmd.store.files import atomic_folder, read_json, write_json
from dpdmd.store.provenance import surroundings
from dpdmd.world.scenes import SIZES
from tools.pretrain.denoiser import draw_batch, latent_cache

NUM_STEPS, BATCH_SIZE, LEARNING_RATE, NUM_SCENES = 300, 32, 3e-4, 4000
STUDENT = [
    "train.num_updates=100",
    'lora.roles=["student", "fake_score"]',
    "lora.rank=32",
    "validation.every=0",
    "train.learning_rate=2e-3",
]
SHOWN = ("diversity", "diversity_share", "frechet", "named_accuracy", "validity", "total_variation_reference")


def fine_tune(out: Path) -> Path:
    """The built-in teacher after some steps on scenes with large shapes alone, as a pipeline folder."""
    if out.exists():
        return out
    adapter = load_adapter("scenes")
    scenes, latents = latent_cache(cast("AutoencoderKL", adapter.vae), NUM_SCENES, seed=0)
    rows = (scenes.discrete["size"] == list(SIZES).index("large")).nonzero()[:, 0]
    scenes, latents = scenes[rows], latents[rows]
    network = adapter.load_network().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(NUM_STEPS):
        x0, eps, t, captions = draw_batch(scenes, latents, BATCH_SIZE, 1.5, generator(0, "other_base", step))
        prediction = adapter.predict(network, add_noise(adapter.path, x0, eps, t), t, adapter.encode(captions))
        loss = denoising_loss(prediction, x0, eps, adapter.prediction_space, adapter.path, t)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            print(f"fine-tuning: step {step} of {NUM_STEPS}, loss {loss.item():.3f}", flush=True)
    with atomic_folder(out) as folder:
        shutil.copytree(built_in_teacher(), folder, dirs_exist_ok=True)
        shutil.rmtree(folder / adapter.network_name)
        network.save_pretrained(folder / adapter.network_name)  # pyright: ignore[reportCallIssue]  # a diffusers model
    return out


def lora_student(out: Path) -> Path:
    """The exported LoRA of a student of the built-in teacher."""
    if not out.exists():
        overrides = [*STUDENT, f"output.folder={out.parent / 'run'}"]
        run = dpdmd.train("scenes_dp_dmd", overrides=overrides, resume=True, progress=False)
        export_run(run.folder, out, lora=True)
    return out


def main() -> None:
    """Fine-tune, train, audit, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs", "other_base"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks", "results", "other_base.json"))
    arguments = parser.parse_args()
    teachers = {"own": "scenes", "other": str(fine_tune(arguments.out / "fine_tune"))}
    lora, rows = lora_student(arguments.out / "lora"), {}
    for name, teacher in teachers.items():
        out = arguments.out / f"audit_{name}"
        prompts = [
            f"a {colour} {shape}" for shape in ("circle", "square", "cross") for colour in ("red", "blue", "green")
        ]
        audit(str(lora), teacher, out=out, prompts=prompts, images_per_prompt=9)
        for model in ("teacher", "student"):
            metrics = read_json(out / model / "metrics.json")
            rows[f"{model}, {name} base"] = {key: metrics.get(key) for key in SHOWN}
    provenance = surroundings("python -m benchmarks.other_base")
    settings = {"student": STUDENT, "fine-tune": {"steps": NUM_STEPS, "learning_rate": LEARNING_RATE}}
    write_json(arguments.results, {"rows": rows, "settings": settings, "provenance": provenance})
    cells = [
        [name, *(f"{row[key]:.3f}" if row[key] is not None else "" for key in SHOWN)] for name, row in rows.items()
    ]
    print(f"{markdown(['model', *SHOWN], cells)}\n\nwritten to {arguments.results}")


if __name__ == "__main__":
    main()
