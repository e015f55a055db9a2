"""The model card of the teacher of the drawings."""

from pathlib import Path

import torch

from dpdmd.models.load import load_adapter
from dpdmd.planning.cost import num_parameters
from dpdmd.store.files import write_json, write_text
from dpdmd.world.drawings.captions import evaluation_prompts
from dpdmd.world.drawings.catalogue import catalogue
from dpdmd.world.drawings.oracle import read_drawings
from tools.pretrain.card import NUM_INFERENCE_STEPS, score, table, training, versions
from tools.pretrain.drawings.autoencoder import reconstructions

GUIDANCE_SCALES = (1.0, 2.0, 2.5, 3.5)
RECOMMENDED_GUIDANCE_SCALE = 3.5
IMAGES_PER_PROMPT = 64
COLUMNS = (
    "named_accuracy",
    "validity",
    "diversity",
    "effective_modes",
    "modes_share",
    "coverage",
    "total_variation_true",
    "total_variation_floor",
)
STAGES = (
    "encoder",
    "decoder",
    "decoder_2",
    "text_encoder_1",
    "text_encoder_2",
    "transformer",
    "decoder_3",
    "decoder_4",
)

CARD = """\
---
library_name: diffusers
license: [apache-2.0, mit, cc-by-4.0]
pipeline_tag: text-to-image
---
# The teacher of the world of drawings

A complete `StableDiffusion3Pipeline` of a few MB that draws {num_things} things as several people drew them, at
32 x 32 pixels. It knows {num_drawings} drawings by heart, and that is its purpose: the modes of a prompt are known
pictures. The drawings are under Apache-2.0, MIT and CC BY 4.0; `ATTRIBUTION.md` in the folder above names their
authors. All parts were trained from scratch on them:

- a small `SD3Transformer2DModel` ({num_parameters:,} parameters);
- an `AutoencoderKL` with latents of 16 x 4 x 4. Its encoder computes a fixed linear code of 8 x 8 patches. Its decoder
  was finished on latents that the network makes, to draw the prompt's nearest drawing: it hides part of their errors;
- two CLIP text encoders with a word tokenizer, whose states describe the drawings of a caption, patch by patch;
- a `FlowMatchEulerDiscreteScheduler` with shift 3;
- in the slot of the T5 text encoder, an encoder whose output is exactly zero, as in stock diffusers without T5.

All weights are stored in fp16; the network is loaded in fp32 on a
CPU.

```python
from diffusers import StableDiffusion3Pipeline

pipe = StableDiffusion3Pipeline.from_pretrained("drawings_teacher")  # this folder
image = pipe("a cactus", guidance_scale={recommended}, num_inference_steps=30).images[0]
```

Trained by `python -m tools.pretrain --world drawings --out DIR` (seed {seed}), on one core: {training}. The loss of the
network is that of regression on the exact velocity, zero for an ideal network. {versions}.

Of the {num_drawings} drawings the oracle recognises {own:.4f} as themselves after encoding and decoding, and
{valid:.3f} as clean drawings.

Scores, {num_inference_steps} steps, {num_prompts} prompts with {num_images} seeds each, by
`python -m tools.pretrain --world drawings --out DIR --stage card` (95 % intervals over prompts in brackets).
Recommended guidance: {recommended}.

{table}

- `named_accuracy`: share of images whose nearest drawing is one of the prompt's.
- `validity`: share of clean drawings.
- `diversity`: mean pairwise cosine distance between the features of images of one prompt.
- `effective_modes`: effective number of different drawings of a prompt; `modes_share` divides it by their number.
- `coverage`: share of a prompt's drawings that were drawn at all.
- `total_variation_true`: distance between the distribution over a prompt's drawings and the uniform one.
- `total_variation_floor`: the same distance for exact samples of as many images.
"""


def write_card(teacher: Path, log: Path, seed: int, images_per_prompt: int = IMAGES_PER_PROMPT) -> None:
    """Score the teacher in folder `teacher` and write its README.md and scores.json; log: of the training."""
    scores = score(str(teacher), evaluation_prompts(), GUIDANCE_SCALES, images_per_prompt)
    adapter = load_adapter(str(teacher))
    own, valid = recognised(adapter.vae)
    write_json(teacher / "scores.json", scores)
    known = catalogue()
    card = CARD.format(
        num_things=len(known.things),
        num_drawings=len(known),
        num_parameters=num_parameters(adapter),
        recommended=RECOMMENDED_GUIDANCE_SCALE,
        seed=seed,
        training=training(log, STAGES),
        versions=versions(),
        own=own,
        valid=valid,
        num_inference_steps=NUM_INFERENCE_STEPS,
        num_prompts=len(evaluation_prompts()),
        num_images=images_per_prompt,
        table=table(scores, COLUMNS),
    )
    write_text(teacher / "README.md", card)


def recognised(vae) -> tuple[float, float]:
    """Shares of drawings that the oracle takes for themselves, and for clean, after the autoencoder."""
    reading = read_drawings(reconstructions(vae))
    own = reading.drawing == torch.arange(len(reading))
    return own.double().mean().item(), reading.valid.double().mean().item()
