"""The facts of a run for its provenance, and one line about where it runs."""

from typing import Any

from dpdmd.distributed.processes import device_name
from dpdmd.recipe.calls import forwards_per_update
from dpdmd.recipe.plan import Plan
from dpdmd.training.parts import Parts


def facts(plan: Plan, parts: Parts) -> dict[str, Any]:
    """Teacher, objective, grids, sizes and cost of a run, for provenance.json."""
    forward, backward = forwards_per_update(plan)
    return {
        "teacher": parts.adapter.source,
        "loras": [lora.model_dump() for lora in parts.adapter.loras],
        "objective": plan.objective_name,
        "guidance_scale": plan.teacher.guidance.scale,
        "num_inference_steps": plan.teacher.grid.num_steps,
        "grid": list(plan.student.grid.times),
        "teacher_grid": list(plan.teacher.grid.times),
        "anchor_steps": plan.anchor_steps,
        "feature_blocks": list(plan.feature_blocks),
        "lint": parts.notes,
        "latent_shape": list(plan.latent_shape),
        "sizes": [{"latent_shape": list(size.latent_shape), "share": size.share} for size in plan.sizes],
        "num_prompts": len(parts.batches.prompts),
        "num_parameters": sum(p.numel() for p in parts.updaters["student"].parameters),
        "extra_parameters": {name: sum(p.numel() for p in n.parameters()) for name, n in parts.networks.items()},
        "forwards_per_update": forward,
        "backwards_per_update": backward,
        "seed": plan.data.seed,
        "samples_per_update": parts.identity["samples_per_update"],
    }


def setup(plan: Plan, parts: Parts) -> dict[str, Any]:
    """What may differ between the sessions of a run, for provenance.json."""
    return {
        "num_processes": parts.accelerator.num_processes,
        "device": device_name(parts.accelerator.device),
        "shard": plan.compute.shard,
    }


def describe(plan: Plan, parts: Parts) -> str:
    """Processes, device and samples per update in one line, for the user to check."""
    number, device = parts.accelerator.num_processes, device_name(parts.accelerator.device)
    samples = f"{parts.identity['samples_per_update']} samples per update"
    if number == 1:
        return f"one process on {device}, {samples}"
    networks = "a share of every network in each" if plan.compute.shard else "copies of the networks in each"
    return f"{number} processes on {device}, {networks}, {samples}"
