"""How long training stands still for a checkpoint: written at once, and beside training.

    python -m benchmarks.stall --json benchmarks/results/stall.json

The network is a random SD3 whose student and fake score are trained whole. Each number is the median over checkpoints.
Beside training only the copy in memory is waited for; the updates while it is written are slower on a CPU, which writes
and computes with the same cores.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.cycle import SAVING, our_trainer, save_model, timed
from dpdmd.store.files import write_json
from dpdmd.store.provenance import surroundings

NAMES = ("update", "at once", "beside", "update meanwhile", "rest")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="How long training stands still for a checkpoint.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, work = Path(folder) / "model", Path(folder)
        save_model(model, width=args.width, num_blocks=args.blocks, latent_size=16)
        trainer = our_trainer(model, work, SAVING, batch_size=1)
        seconds: dict[str, list[float]] = {name: [] for name in NAMES}
        trainer.iterate()
        for _ in range(args.repeats):
            seconds["update"].append(timed(trainer.iterate))
            seconds["at once"].append(timed(lambda: trainer.save(work / "checkpoints")))
            seconds["beside"].append(timed(lambda: trainer.save(work / "checkpoints", wait=False)))
            seconds["update meanwhile"].append(timed(trainer.iterate))
            seconds["rest"].append(timed(trainer.saving.wait))
        size = sum(
            path.stat().st_size for path in next((work / "checkpoints").glob("step-*")).rglob("*") if path.is_file()
        )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{size / 2**20:.0f} MiB: " + ", ".join(f"{name} {value:.3f} s" for name, value in medians.items()))
    if args.json:
        write_json(args.json, {"bytes": size, "seconds": seconds, "median": medians, "setup": surroundings()})


if __name__ == "__main__":
    main()
