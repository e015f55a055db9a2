"""What do the options cost in quality that make an update cheaper? DP-DMD with and without each, several seeds.

    python -m benchmarks.savings --seeds 2 --updates 150 --jobs 2

Arms: the guided teacher; DP-DMD as in the recipe; with the samples of the student shared by all fake-score updates of
an iteration; with four second-order teacher steps to the anchor instead of fifteen; trained at one random step; with
all three. All share updates, noise, prompts and learning rates, so that seconds differ. Resumable, as collapse.py.
"""

from benchmarks.seeds import run_benchmark
from dpdmd.compare.arms import Arm

REUSE = {"train.reuse_samples": True}
COARSE = {"objective.anchor.coarse_steps": 4, "objective.anchor.second_order": True}
RANDOM = {"train.random_step": True}
SAVINGS = {"dp_dmd": {}, "reuse": REUSE, "coarse": COARSE, "random_step": RANDOM, "all": REUSE | COARSE | RANDOM}


def student_arms(settings: dict) -> list[Arm]:
    """The trained arms."""
    return [Arm(name, "scenes_dp_dmd", settings | saving) for name, saving in SAVINGS.items()]


if __name__ == "__main__":
    teachers = [Arm("teacher", model="scenes")]
    run_benchmark("savings", __doc__, teachers=teachers, students=student_arms, updates=150)
