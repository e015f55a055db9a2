"""DMD and DP-DMD on the noise-predicting teacher, with the settings that its recipe had before.

    python -m benchmarks.noise_prediction_recipe --seeds 3 --jobs 2

Arms: the guided teacher with 30 and with 4 steps; DMD; DP-DMD with the anchor's x0 target (the recipe) and with its
secant target in eps space. All students share budget, noise, prompts, guidance, noise levels and learning rate; only
the objective differs. For the published schedule see noise_prediction.py.

Like benchmarks.collapse, an interrupted command can be run again. Writes
benchmarks/results/noise_prediction_recipe.json.
"""

from benchmarks.noise_prediction import TEACHERS
from benchmarks.pareto import BEFORE
from benchmarks.seeds import run_benchmark
from dpdmd.compare.arms import Arm

SECANT = {"objective.anchor.target": "secant", "objective.anchor.weight": 200.0, "objective.anchor.guidance_scale": 2.5}


def student_arms(settings: dict) -> list[Arm]:
    """The arms that are trained."""
    settings = settings | BEFORE | {"objective.anchor.guidance_scale": 3.5}
    return [
        Arm("dmd", "scenes_eps_dp_dmd", settings | {"objective.name": "dmd"}),
        Arm("dp_dmd_x0", "scenes_eps_dp_dmd", settings),
        Arm("dp_dmd_secant", "scenes_eps_dp_dmd", settings | SECANT),
    ]


if __name__ == "__main__":
    run_benchmark("noise_prediction_recipe", __doc__, teachers=TEACHERS, students=student_arms, updates=150)
