"""Time per update of the built-in world's recipes: DP-DMD and DMD's rivals, relative to DMD.

    python -m benchmarks.overhead --json benchmarks/results/overhead.json

One process trains all arms in turns of ten updates each, so that other load on the machine affects all of them equally.
The first turn is a warm-up and not counted: it generates the teacher samples that are kept, and allocates memory. The
results are ratios per turn, reported as mean with the 95 % interval of Student's t.
"""

import argparse
import json
import tempfile
from pathlib import Path

from tqdm import tqdm

from benchmarks.pareto import PUBLISHED, PUBLISHED_DMD
from benchmarks.trainers import new_trainer
from dpdmd.compare.summary import summarise
from dpdmd.recipe.calls import forwards_per_update
from dpdmd.recipe.toml import load_recipe
from dpdmd.store.files import write_json
from dpdmd.store.provenance import surroundings
from dpdmd.training.trainer import Trainer

UPDATES = 10
ARMS = {
    "dmd": ("scenes_dmd", {}),
    "dp_dmd": ("scenes_dp_dmd", {}),
    "dp_dmd, anchor in every update": ("scenes_dp_dmd", {"objective.anchor.every": 1}),
    "dmd_perceptual": ("scenes_dmd_perceptual", {}),
    "dmd_adversarial": ("scenes_dmd_adversarial", {}),
    "dmd, schedule as published": ("scenes_dmd", PUBLISHED_DMD),
    "dp_dmd, as published": (PUBLISHED, {}),
}


def trainer_of(recipe: str, settings: dict, folder: Path) -> Trainer:
    """The trainer of a run before its first update."""
    folders = {"output.folder": folder / "run", "data.cache": folder / "cache"}
    sets = [f"{key}={str(v).lower() if isinstance(v, bool) else v}" for key, v in (settings | folders).items()]
    return new_trainer(load_recipe(recipe, sets))


def seconds(trainer: Trainer) -> float:
    """Training seconds of UPDATES updates."""
    before = trainer.seconds
    for _ in range(UPDATES):
        trainer.iterate()
    return trainer.seconds - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="number of timed turns")
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks", "results", "overhead.json"), help="JSON file to write"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        trainers = {name: trainer_of(*arm, Path(work)) for name, arm in ARMS.items()}
        turns = [
            {name: seconds(trainer) for name, trainer in trainers.items()}
            for _ in tqdm(range(arguments.turns + 1), desc="turns")
        ][1:]
    results = {}
    for name, trainer in trainers.items():
        forward, backward = forwards_per_update(trainer.plan)
        measured = {
            "ratio": [turn[name] / turn["dmd"] for turn in turns],
            "seconds_per_cycle": [turn[name] / UPDATES for turn in turns],
        }
        own = {key: summarise(values) | {"interval": "turns"} for key, values in measured.items()}
        results[name] = own | {"forwards_per_update": forward, "backwards_per_update": backward}
    content = {
        "arms": results,
        "provenance": surroundings(f"python -m benchmarks.overhead --turns {arguments.turns}"),
    }
    write_json(arguments.json, content)
    print(json.dumps({name: result["ratio"] for name, result in results.items()}, indent=1))


if __name__ == "__main__":
    main()
