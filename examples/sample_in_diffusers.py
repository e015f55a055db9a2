"""Export a student and sample it with stock diffusers, without dpdmd.

    python examples/sample_in_diffusers.py

Distils the built-in teacher in 5 updates, exports the student to runs/sample_in_diffusers/pipeline and draws one image
with diffusers alone, in about a minute on a CPU. Expect "largest difference from dpdmd's own image: 1 of 255" (0 to 2:
the export has half precision, as the teacher's files do): the same seed gives the same image. The README.md of every
export says how to sample it.

An export is never overwritten: remove runs/sample_in_diffusers before you run this again.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline

import dpdmd
from dpdmd.publish.export import export_run

OUT = Path("runs/sample_in_diffusers")
PROMPT, SEED = "a red circle", 0


def main() -> None:
    # Deterministic steps: a student that draws fresh noise takes it from elsewhere in stock diffusers, and differs.
    settings = ["train.num_updates=5", "student.kind=ode", f"output.folder={OUT / 'run'}"]
    run = dpdmd.train("scenes_dp_dmd", overrides=settings)
    folder = export_run(run.folder, OUT / "pipeline")

    # From here on as anybody would who has only the exported folder. The number of steps is the one that this student
    # was trained for, its scheduler knows the noise levels, and a student needs no guidance.
    pipe = StableDiffusion3Pipeline.from_pretrained(folder)
    generator = torch.Generator().manual_seed(SEED)
    image = pipe(PROMPT, num_inference_steps=4, guidance_scale=1.0, generator=generator).images[0]
    image.save(OUT / "image.png")

    ours = dpdmd.sample(run.folder, [PROMPT], seeds=[SEED])[0]  # (3, 32, 32) in [-1, 1]
    levels = ((ours + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
    difference = np.abs(np.asarray(image, dtype=float) - levels).max()
    print(f"image: {OUT / 'image.png'}\nlargest difference from dpdmd's own image: {difference:.0f} of 255")


if __name__ == "__main__":
    main()
