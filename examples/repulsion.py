"""An objective of your own: DP-DMD with a repulsion between the student's samples of one prompt.

    python examples/repulsion.py

Distils the built-in teacher in 10 updates, about a minute on a CPU. Expect one line per update with the repulsion
(below 1) and the distance between samples of one prompt (near 1), and the student in runs/repulsion. Ten updates show
how it works, not whether it helps: for that, train as long as the recipe says and compare with `dpdmd compare`.

The same objective in a recipe, with this file's folder on PYTHONPATH:

    [objective]
    name = "repulsion:dp_dmd_with_repulsion"
"""

from dataclasses import dataclass, replace

import torch

import dpdmd


@dataclass(frozen=True)
class Repulsion(dpdmd.Term):
    """mean of exp(-d_ij^2 / (2 bandwidth^2)) over pairs i < j of samples of one prompt.

    d_ij^2 is the mean over coordinates of (x0_i - x0_j)^2. The student receives the gradient, which drives the samples
    of a prompt apart; pairs that are much farther apart than `bandwidth` hardly feel it.
    """

    name = "repulsion"
    bandwidth: float = 1.0

    def __call__(self, step: dpdmd.StudentStep) -> dpdmd.TermResult:
        x0 = step.rollout.x0
        samples = x0.reshape(-1, step.samples_per_prompt, x0[0].numel())  # (prompts, samples per prompt, coordinates)
        i, j = torch.triu_indices(step.samples_per_prompt, step.samples_per_prompt, offset=1)
        squared = (samples[:, i] - samples[:, j]).square().mean(dim=2)
        loss = torch.exp(-squared / (2 * self.bandwidth**2)).mean()
        return dpdmd.TermResult(loss, health={"distance": squared.detach().sqrt().mean()})


def dp_dmd_with_repulsion(setting: dpdmd.ObjectiveSetting) -> dpdmd.Objective:
    """The terms of DP-DMD, and this one."""
    objective = dpdmd.dp_dmd(setting)
    return replace(objective, terms=(*objective.terms, Repulsion(weight=0.1)))


def main() -> None:
    overrides = ["train.num_updates=10", "data.samples_per_prompt=4", "output.folder=runs/repulsion"]
    run = dpdmd.train("scenes_dp_dmd", objective=dp_dmd_with_repulsion, overrides=overrides, overwrite=True)
    for row in run.metrics():
        print(f"update {row['step']}: repulsion {row['loss/repulsion']:.3f}, distance {row['health/distance']:.3f}")
    print(f"student: {run.student}")


if __name__ == "__main__":
    main()
