"""Time and peak memory of one cycle (a student update with its fake-score updates), compared with the reference.

    python -m benchmarks.cycle --json benchmarks/results/cycle.json

The reference is the schedule of the paper's released code (benchmarks/reference.py). It has the same random weights and
runs in the same process; cycles of all arms alternate, in fp32 on a CPU and in bf16 on a GPU. Our arms are: the keys'
defaults, with five fake-score updates; the settings of the recipes, with one; both with activation checkpointing; and
the recipes' with student and fake score as LoRA on one backbone. The model is a small SD3 that a CPU can train: four
blocks of width 192, 256 image tokens, 333 text tokens, batch size 2.

Time is wall-clock time, reported as a ratio per pair of cycles with the 95 % interval of Student's t. Memory is the
bytes of all tensors that are alive at the peak of a cycle: weights, optimiser states and activations. One additional
cycle of each arm is timed by phase.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import nn

from benchmarks.reference import ReferenceRun
from benchmarks.trainers import new_trainer
from dpdmd.compare.summary import summarise
from dpdmd.planning.memory import LiveBytes
from dpdmd.recipe.schema import Recipe
from dpdmd.store.files import write_json
from dpdmd.store.provenance import surroundings
from dpdmd.training.offloaded_adamw import OffloadedAdamW
from dpdmd.training.trainer import Trainer
from tools.pretrain.autoencoder import new_autoencoder
from tools.pretrain.pipelines import silent_t5
from tools.pretrain.text_encoders import new_text_encoder, new_tokenizer

PROMPTS = [
    f"a {size} {colour} {shape}"
    for size in ("small", "large")
    for colour in ("red", "blue")
    for shape in ("circle", "cross")
]
# What the recipes have (`dpdmd.recipe.settings`).
SAVING = {
    "train": {"fake_updates": 1, "reuse_samples": "student", "random_step": True},
    "objective": {"anchor": {"fraction": 0.5}},
    "student": {"kind": "renoise_last"},
}
CHECKPOINTED = {"train": {"gradient_checkpointing": True}}
SHARED = {"lora": {"roles": ["student", "fake_score"], "rank": 16}}


def merged(*settings: dict) -> dict:
    """Nested tables merged; later ones take precedence."""
    result: dict[str, Any] = {}
    for table in settings:
        for key, value in table.items():
            result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


ARMS = {
    "defaults": {},
    "defaults, checkpointed": CHECKPOINTED,
    "recipe": SAVING,
    "recipe, checkpointed": merged(SAVING, CHECKPOINTED),
    "recipe, checkpointed, one backbone": merged(SAVING, CHECKPOINTED, SHARED),
}


def save_model(folder: Path, *, width: int, num_blocks: int, latent_size: int) -> None:
    """Save a random SD3 pipeline whose T5 is not silent: all of its 256 tokens are attended to."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    t5, encoder = silent_t5(len(tokenizer)), new_text_encoder(tokenizer).eval()
    nn.init.ones_(t5.encoder.final_layer_norm.weight)
    transformer = SD3Transformer2DModel(
        sample_size=latent_size,
        in_channels=4,
        out_channels=4,
        num_layers=num_blocks,
        attention_head_dim=64,
        num_attention_heads=width // 64,
        joint_attention_dim=2 * encoder.config.hidden_size,
        caption_projection_dim=width,
        pooled_projection_dim=2 * encoder.config.hidden_size,
        pos_embed_max_size=latent_size,
        qk_norm="rms_norm",
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=new_autoencoder(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        text_encoder_3=t5,
        tokenizer_3=tokenizer,
    )
    pipeline.vae.register_to_config(shift_factor=0.0)
    pipeline.save_pretrained(folder)


def our_trainer(model: Path, work: Path, settings: dict, batch_size: int) -> Trainer:
    """The trainer of a DP-DMD run before its first update."""
    if not (work / "prompts.txt").exists():
        (work / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    cuda = torch.cuda.is_available()
    base = {
        "model": {"teacher": str(model), "guidance_scale": 3.5, "num_inference_steps": 30},
        "data": {"prompts": str(work / "prompts.txt"), "cache": str(work / "cache")},
        "train": {"batch_size": batch_size, "precision": "bf16" if cuda else "fp32"},
        "output": {"folder": str(work / "run")},
    }
    return new_trainer(Recipe.model_validate(merged(base, settings)))


def resident(trainer: Trainer) -> list[nn.Module | torch.optim.Optimizer]:
    """The networks and optimisers of our trainer that stay on the device, without what is offloaded to the CPU."""
    optimisers = [updater.optimizer for updater in trainer.updaters.values()]
    return [*trainer.roles.modules.values(), *(o for o in optimisers if not isinstance(o, OffloadedAdamW))]


def num_bytes(parts: list[nn.Module | torch.optim.Optimizer]) -> int:
    """Bytes of all their tensors, each storage counted once."""
    storages = {}
    for part in parts:
        if isinstance(part, nn.Module):
            tensors = [*part.parameters(), *part.buffers()]
        else:
            tensors = [value for state in part.state.values() for value in state.values()]
        storages |= {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class Clock:
    """Seconds by phase; `phase(name)` waits for the device at both ends."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        synchronise()
        started = time.perf_counter()
        yield
        synchronise()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(cycle: Callable[[], Any]) -> float:
    """Wall-clock seconds."""
    synchronise()
    started = time.perf_counter()
    cycle()
    synchronise()
    return time.perf_counter() - started


def our_phases(trainer: Trainer) -> dict[str, float]:
    """One iteration, by phase."""
    clock, predict = Clock(), trainer.parts.adapter.predict
    teacher = trainer.roles.networks["teacher"]
    backward, update = trainer.accelerator.backward, trainer._student_update
    in_student_update = False

    def timed_predict(network, *args, **kwargs):
        if torch.is_grad_enabled():
            name = "forward with graph"
        elif not in_student_update:
            name = "student rollout for the fake score"
        else:
            name = "anchor and scores" if network is teacher else "student rollout without graph, fake score"
        with clock.phase(name):
            return predict(network, *args, **kwargs)

    def timed_update():
        nonlocal in_student_update
        in_student_update = True
        return update()

    def timed_backward(loss):
        with clock.phase("backward"):
            backward(loss)

    trainer.parts.adapter.predict, trainer._student_update = timed_predict, timed_update
    trainer.accelerator.backward = timed_backward
    for updater in trainer.updaters.values():
        step = updater.optimizer.step

        def timed_step(step=step):
            with clock.phase("optimiser"):
                step()

        updater.optimizer.step = timed_step
    whole = timed(trainer.iterate)
    return {**clock.seconds, "everything else": whole - sum(clock.seconds.values())}


def peak(cycle: Callable[[], Any], parts: Callable[[], list]) -> int:
    """Bytes at the peak of a cycle, including those of `parts`."""
    before = num_bytes(parts())
    with LiveBytes() as live:
        cycle()
    return before + live.peak


def measure(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The results of all arms; ratios are ours divided by the reference's."""
    model, device = work / "model", torch.device("cuda" if torch.cuda.is_available() else "cpu")
    save_model(model, width=arguments.width, num_blocks=arguments.blocks, latent_size=arguments.latent_size)
    reference = ReferenceRun(model, PROMPTS, arguments.batch_size, device, work)
    trainers = {name: our_trainer(model, work, settings, arguments.batch_size) for name, settings in ARMS.items()}
    cycles = {name: trainer.iterate for name, trainer in trainers.items()}

    def reference_cycle() -> None:
        with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
            reference.cycle(lambda name: nullcontext())

    for cycle in (reference_cycle, *cycles.values()):
        cycle()  # optimiser states, warm caches
    seconds: dict[str, list[float]] = {name: [] for name in ("reference", *cycles)}
    for _ in range(arguments.repeats):
        for name, cycle in (("reference", reference_cycle), *cycles.items()):
            seconds[name].append(timed(cycle))
    bytes_of = {"reference": peak(reference_cycle, reference.resident)}
    bytes_of |= {name: peak(cycle, lambda name=name: resident(trainers[name])) for name, cycle in cycles.items()}
    clock = Clock()
    whole = timed(lambda: reference.cycle(clock.phase))
    phases = {"reference": {**clock.seconds, "everything else": whole - sum(clock.seconds.values())}}
    phases |= {name: our_phases(trainer) for name, trainer in trainers.items()}
    return {
        name: {
            "seconds": summarise(seconds[name]),
            "time_ratio": summarise([a / b for a, b in zip(seconds[name], seconds["reference"], strict=True)]),
            "bytes": bytes_of[name],
            "memory_ratio": bytes_of[name] / bytes_of["reference"],
            "phases": phases[name],
        }
        for name in seconds
    }


def markdown(arms: dict[str, dict]) -> str:
    """The table of ratios, and the one of phases."""
    lines = [
        "| arm | seconds per cycle | time, ours / reference | peak memory (MiB) | memory, ours / reference |",
        "|---" * 5 + "|",
    ]
    for name, arm in arms.items():
        ratio = arm["time_ratio"]
        half = f" ± {(ratio['high'] - ratio['low']) / 2:.2f}" if "high" in ratio and name != "reference" else ""
        lines.append(
            f"| {name} | {arm['seconds']['mean']:.2f} | {ratio['mean']:.2f}{half} | {arm['bytes'] / 2**20:.0f} | "
            f"{arm['memory_ratio']:.2f} |"
        )
    names = list(dict.fromkeys(phase for arm in arms.values() for phase in arm["phases"]))
    lines += ["", f"| seconds of one cycle | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|"]
    for phase in names:
        cells = [f"{arm['phases'][phase]:.2f}" if phase in arm["phases"] else "" for arm in arms.values()]
        lines.append(f"| {phase} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=3, help="number of timed cycles of each arm")
    parser.add_argument("--batch-size", type=int, default=2, help="prompts per micro-batch")
    parser.add_argument("--width", type=int, default=192, help="width of the transformer, a multiple of 64")
    parser.add_argument("--blocks", type=int, default=4, help="number of transformer blocks")
    parser.add_argument("--latent-size", type=int, default=32, help="height and width of the latents")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        arms = measure(arguments, Path(work))
    defaults, recipe = arms["defaults"], arms["recipe"]
    result = {
        "time_ratio": defaults["time_ratio"]["mean"],
        "memory_ratio": defaults["memory_ratio"],
        "time_ratio_of_the_recipe": recipe["time_ratio"]["mean"],
        "memory_ratio_of_the_recipe": recipe["memory_ratio"],
        "arms": arms,
        "provenance": {
            "settings": {key: value for key, value in vars(arguments).items() if key != "json"},
            **surroundings("python -m benchmarks.cycle"),
        },
    }
    print(markdown(arms))
    if arguments.json is not None:
        write_json(arguments.json, result)
        print(f"\nwritten to {arguments.json}")


if __name__ == "__main__":
    main()
