"""Does DMD lose diversity that its teacher has, and does DP-DMD keep it? Several training seeds, with intervals.

    python -m benchmarks.collapse --seeds 5 --updates 150 --jobs 2

Arms: the guided teacher with 30 and with 4 steps; DMD; DP-DMD with the paper's K = 5 and lambda = 0.05; DP-DMD with
lambda = 1 and K = 15, the time at which the student's step 1 ends. All students share budget, noise, prompts, guidance,
noise levels and learning rate. Only the objective differs, in its published form. For other settings see pareto.py.

Finished runs are kept in --out and not repeated, so an interrupted command can be run again. Writes
benchmarks/results/collapse.json and prints a table. The time is about --seeds x --updates x 7 s on one
core: 90 minutes on two cores for the command above.
"""

from benchmarks.pareto import BEFORE
from benchmarks.seeds import run_benchmark
from dpdmd.compare.arms import Arm
from dpdmd.demo import demo_arms

# The published settings where the recipe now has others.
PUBLISHED = BEFORE | {
    "train.reuse_samples": False,
    "train.random_step": False,
    "objective.tau_shift": 6.0,
    "objective.anchor.guidance_scale": 3.5,
    "objective.anchor.coarse_steps": 30,
    "objective.anchor.second_order": False,
    "objective.anchor.every": 1,
}
TEACHERS = [arm for arm in demo_arms() if arm.model]


def student_arms(settings: dict) -> list[Arm]:
    """The arms that are trained."""
    settings = settings | PUBLISHED
    paper = {"objective.anchor.steps": 5, "objective.anchor.weight": 0.05}
    return [
        Arm("dmd", "scenes_dmd", {"train.learning_rate": 5e-4} | settings),
        Arm("dp_dmd_paper", "scenes_dp_dmd", settings | paper),
        Arm("dp_dmd", "scenes_dp_dmd", settings),
    ]


if __name__ == "__main__":
    run_benchmark("collapse", __doc__, teachers=TEACHERS, students=student_arms, updates=150)
