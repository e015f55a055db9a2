"""Score a folder of images against the folder of its teacher's images, for the same prompts and seeds.

    python examples/judge_a_folder.py

The candidate here is the built-in teacher with its guidance raised from 3.5 to 8. It takes less than a minute on a CPU.
Expect that it keeps about half of the diversity (0.51: strong guidance draws nearly the same picture for every seed),
although every colour and shape is as the prompt says (1.00). So report diversity and quality together.

For images of your own, give `evaluate_folder` two folders, each with one sub-folder per prompt (the folder's name is
the prompt, the files are its images) or with a manifest.json that names prompt, seed and file of each image.
"""

from pathlib import Path

from dpdmd.evaluate.generate import generate_folder
from dpdmd.evaluate.run import evaluate_folder

PROMPTS = ["a red circle", "a green square", "a blue triangle", "a yellow cross"]
SEEDS = list(range(8))
METRICS = {
    "diversity_share": "diversity, as a share of the teacher's",
    "named_accuracy": "colours and shapes drawn as the prompt says",
    "validity": "clean scenes",
}


def main(out: Path = Path("runs/judge_a_folder")) -> None:
    generate_folder("scenes", PROMPTS, seeds=SEEDS, out=out / "teacher")
    generate_folder("scenes", PROMPTS, seeds=SEEDS, guidance_scale=8.0, out=out / "candidate")
    metrics = evaluate_folder(out / "candidate", reference=out / "teacher", out=out / "metrics.json")
    for key, meaning in METRICS.items():
        low, high = metrics["intervals"][key]
        print(f"{meaning}: {metrics[key]:.2f}, 95 % interval over prompts {low:.2f} to {high:.2f}")
    print(f"all metrics: {out / 'metrics.json'}")


if __name__ == "__main__":
    main()
