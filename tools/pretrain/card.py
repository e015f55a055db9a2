"""Write the model card of a built-in teacher: how it was trained, and its exact metrics in the built-in world."""

import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dpdmd.evaluate.generate import generate_folder
from dpdmd.evaluate.run import evaluate_folder
from dpdmd.models.load import load_adapter
from dpdmd.planning.cost import num_parameters
from dpdmd.store.files import write_json, write_text
from dpdmd.world.prompts import evaluation_prompts

GUIDANCE_SCALES = (1.0, 2.0, 3.5, 5.0)
RECOMMENDED_GUIDANCE_SCALE = 3.5
NUM_INFERENCE_STEPS = 30
IMAGES_PER_PROMPT = 32
COLUMNS = (
    "named_accuracy",
    "validity",
    "diversity",
    "effective_modes",
    "total_variation_true",
    "total_variation_floor",
    "saturation",
)

CARD = """\
---
library_name: diffusers
license: apache-2.0
pipeline_tag: text-to-image
---
# The built-in teacher

A complete `{pipeline}` of a few MB that generates 32 x 32 scenes from captions. All parts were
trained from scratch on scenes rendered on the fly, without external data:

- a small `{network}` ({num_parameters:,} parameters);
- an `AutoencoderKL` that reduces each side by a factor of 4;
- two CLIP text encoders with a word tokenizer;
- {remarks}

All weights are stored in fp16 and loaded in fp32 on a CPU.

```python
from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained("scenes_teacher")  # this folder
image = pipe("a small blue cross on a white background", guidance_scale={recommended}, num_inference_steps=30).images[0]
```

Trained by `python -m tools.pretrain --out DIR` (seed {seed}): {training}.
{versions}.

Scores, {num_inference_steps} steps, {num_prompts} prompts "a COLOUR SHAPE" with {num_images} seeds each, by
`python -m tools.pretrain --out DIR --stage card` (95 % intervals over prompts in brackets). Recommended guidance:
{recommended}.

{table}

- `named_accuracy`: share of the factors named in the prompt that the image shows.
- `validity`: share of images that are a clean scene.
- `diversity`: mean pairwise cosine distance between the features of images of one prompt.
- `effective_modes`: exponential of the mean entropy of the factors that the prompt leaves free.
- `total_variation_true`: distance between the distribution of the free factors and the world's own, mean over factors.
- `total_variation_floor`: the same distance for exact samples of as many valid images.
- `saturation`: share of colour values that are exactly 0 or 255.
"""


REMARKS = {
    "transformer": """\
a `FlowMatchEulerDiscreteScheduler` with shift 3;
- in the slot of the T5 text encoder, an encoder whose output is exactly zero, as in stock diffusers without T5.""",
    "unet": """\
a `DDIMScheduler` with the betas of SDXL and trailing timesteps.

The network predicts the noise. The unconditional prompt is the encoded empty prompt.""",
}


def score(
    model: str, prompts: list[str], guidance_scales: tuple[float, ...], images_per_prompt: int
) -> dict[str, dict[str, Any]]:
    """Compute the exact metrics of a teacher at several guidance scales, {scale: metrics}."""
    scores = {}
    for scale in guidance_scales:
        with tempfile.TemporaryDirectory() as folder:
            generate_folder(
                model,
                prompts,
                out=folder,
                seeds=list(range(images_per_prompt)),
                num_inference_steps=NUM_INFERENCE_STEPS,
                guidance_scale=scale,
                batch_size=128,
            )
            metrics = evaluate_folder(folder)
        scores[str(scale)] = {key: value for key, value in metrics.items() if key not in ("per_prompt", "provenance")}
    return scores


def write_card(teacher: Path, log: Path, network: str, seed: int, images_per_prompt: int = IMAGES_PER_PROMPT) -> None:
    """Score the teacher in folder `teacher` and write its README.md and scores.json.

    log: the training log (JSON lines), from which the card reports steps, losses and minutes.
    network: the name of the denoising network, "transformer" or "unet".
    """
    scores = score(str(teacher), evaluation_prompts(), GUIDANCE_SCALES, images_per_prompt)
    adapter = load_adapter(str(teacher))
    write_json(teacher / "scores.json", scores)
    card = CARD.format(
        pipeline=adapter.pipeline_class.__name__,
        network=adapter.network_class.__name__,
        remarks=REMARKS[network],
        num_parameters=num_parameters(adapter),
        recommended=RECOMMENDED_GUIDANCE_SCALE,
        seed=seed,
        training=training(log, ("autoencoder", "text_encoder", network)),
        versions=versions(),
        num_inference_steps=NUM_INFERENCE_STEPS,
        num_prompts=len(evaluation_prompts()),
        num_images=images_per_prompt,
        table=table(scores, COLUMNS),
    )
    write_text(teacher / "README.md", card)


def versions() -> str:
    """The versions and the machine of the training."""
    return f"torch {version('torch')}, diffusers {version('diffusers')}, {platform.machine()}, CPU only"


def training(log: Path, stages: tuple[str, ...]) -> str:
    """Summarise steps, final loss and minutes of these stages; "seconds" in the log restarts in every round."""
    rows_of: dict[str, list[dict]] = {}
    for row in map(json.loads, log.read_text().splitlines()):
        if "step" in row and row["stage"] in stages:
            rows_of.setdefault(row["stage"], []).append(row)
    parts = []
    for stage, rows in rows_of.items():
        times = [row.get("seconds", 0.0) for row in rows]
        ends = [now for now, later in zip(times, [*times[1:], 0.0], strict=True) if later <= now]
        minutes = f", {sum(ends) / 60:.0f} min" if sum(ends) else ""
        loss = rows[-1].get("loss", rows[-1].get("reconstruction"))
        parts.append(f"{stage.replace('_', ' ')} {rows[-1]['step'] + 1} steps, loss {loss:.4f}{minutes}")
    return "; ".join(parts)


def table(scores: dict[str, dict[str, Any]], columns: tuple[str, ...]) -> str:
    """The Markdown table of scores by guidance scale, with their intervals."""
    lines = [f"| guidance | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for scale, metrics in scores.items():
        cells = []
        for column in columns:
            value, interval = metrics.get(column), metrics["intervals"].get(column)
            text = "-" if value is None else f"{value:.3f}"
            cells.append(text + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""))
        lines.append(f"| {scale} | {' | '.join(cells)} |")
    return "\n".join(lines)
