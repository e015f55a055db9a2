"""DMD and DP-DMD on the noise-predicting teacher: which target and weight of the anchor work best?

    python -m benchmarks.noise_prediction --seeds 2 --updates 100 --jobs 2

Arms: the guided teacher with 30 and with 4 steps; DMD; DP-DMD with the anchor's secant target in eps space and with its
x0 target. For the same error at this teacher's noisiest timestep, the loss of the x0 target is 213.6 times larger; the
weights are chosen to compensate for that. All students share budget, noise, prompts, guidance and learning rate.

Like benchmarks.collapse, an interrupted command can be run again. Writes benchmarks/results/noise_prediction.json.
"""

from benchmarks.pareto import BEFORE
from benchmarks.seeds import run_benchmark
from dpdmd.compare.arms import Arm
from dpdmd.compare.plan import Teacher

TEACHERS = Teacher("scenes_eps", guidance_scale=3.5, num_inference_steps=30, few_steps=4).arms()
# Target and weight. A weight of 213.6 in eps space corresponds to 1 in x0 space.
ANCHORS = {
    "x0_paper": ("x0", 0.05),
    "x0": ("x0", 1.0),
    "secant": ("secant", 200.0),
}


# The published schedule, where the recipe now has other settings: fresh samples for every update, all steps trained at
# once, every teacher step to the anchor. Scores are compared mostly at high noise.
SCHEDULE = BEFORE | {
    "objective.anchor.guidance_scale": 3.5,
    "train.reuse_samples": False,
    "train.random_step": False,
    "objective.tau_shift": 6.0,
    "objective.anchor.every": 1,
    "objective.anchor.coarse_steps": 30,
    "objective.anchor.second_order": False,
}


def student_arms(settings: dict) -> list[Arm]:
    """The arms that are trained."""
    settings = settings | SCHEDULE
    arms = [Arm("dmd", "scenes_eps_dp_dmd", settings | {"objective.name": "dmd"})]
    for name, (target, weight) in ANCHORS.items():
        anchor = {"objective.anchor.target": target, "objective.anchor.weight": weight}
        arms.append(Arm(f"dp_dmd_{name}", "scenes_eps_dp_dmd", settings | anchor))
    return arms


if __name__ == "__main__":
    run_benchmark("noise_prediction", __doc__, teachers=TEACHERS, students=student_arms, updates=100)
