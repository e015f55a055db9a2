"""What a run is, told: for its provenance, and in a line to compare with what was asked for."""

from typing import Any

from dpdmd.distributed.processes import device_name
from dpdmd.planning.cost import forwards_per_update
from dpdmd.training.trainer import Trainer


def facts(trainer: Trainer) -> dict[str, Any]:
    """What a run is made of, for provenance.json."""
    plan, recipe = trainer.plan, trainer.recipe
    forward, backward = forwards_per_update(plan, recipe)
    return {
        "teacher": trainer.adapter.source,
        "guidance_scale": plan.guidance_scale,
        "num_inference_steps": plan.teacher_grid.num_steps,
        "grid": list(plan.student_grid.times),
        "teacher_grid": list(plan.teacher_grid.times),
        "anchor_stops": list(plan.anchor_stops),
        "feature_blocks": list(plan.feature_blocks),
        "lint": trainer.notes,
        "latent_shape": list(plan.latent_shape),
        "num_prompts": len(trainer.batches.prompts),
        "num_parameters": sum(p.numel() for p in trainer.updaters["student"].parameters),
        "extra_parameters": {name: sum(p.numel() for p in n.parameters()) for name, n in trainer.extras.items()},
        "forwards_per_update": forward,
        "backwards_per_update": backward,
        "seed": recipe.train.seed,
        "samples_per_update": trainer.samples_per_update,
    }


def setup(trainer: Trainer) -> dict[str, Any]:
    """What a session of a run may have of its own, for provenance.json."""
    return {
        "num_processes": trainer.accelerator.num_processes,
        "device": device_name(trainer.accelerator.device),
        "shard": trainer.recipe.train.shard,
    }


def describe(trainer: Trainer) -> str:
    """What runs, in a line, to compare with what was asked for."""
    number, device = trainer.accelerator.num_processes, device_name(trainer.accelerator.device)
    if number == 1:
        return f"one process on {device}, {trainer.samples_per_update} samples per update"
    networks = "a share of every network in each" if trainer.recipe.train.shard else "copies of the networks in each"
    return f"{number} processes on {device}, {networks}, {trainer.samples_per_update} samples per update"
