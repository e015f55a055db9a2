"""The phases of `benchmarks.full_size`, each a function that runs in a process of its own.

A process reads VmHWM of /proc/self/status, the most memory that was resident, and sets it back through
/proc/self/clear_refs where one phase ends and the next begins in the same process: Linux only.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.bf16_products import are_slow, products_in_fp32
from benchmarks.random_pipeline import folder_bytes
from dpdmd.evaluate.generate import sample_latents
from dpdmd.method.denoiser import Condition
from dpdmd.method.randomness import generator
from dpdmd.models.attached_lora import network_takes_lora
from dpdmd.models.base import ModelAdapter, decoder
from dpdmd.models.identity import part_identities
from dpdmd.models.load import load_adapter, load_sampler
from dpdmd.models.student_file import LORA_FILE
from dpdmd.planning.cost import network_sizes, num_parameters, state_bytes
from dpdmd.planning.fit import memory_need
from dpdmd.planning.memory import picture_bytes
from dpdmd.publish.export import export_run
from dpdmd.recipe.plan import Plan
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe
from dpdmd.recipe.toml import changed_recipe
from dpdmd.store.files import read_json, write_json
from dpdmd.store.png import write_png
from dpdmd.store.tensors import read_tensors
from dpdmd.training.loop import run_training

PROMPTS = ("a red circle", "two blue squares", "a small cross", "a large green circle")
RANK, NUM_STEPS = 16, 2


@dataclass(frozen=True)
class Work:
    """Where a family's files are while it is tried, and the size of its images in pixels."""

    folder: Path
    size: int

    @property
    def teacher(self) -> Path:
        """The pipeline folder with random weights."""
        return self.folder / "teacher"

    @property
    def run(self) -> Path:
        """The run."""
        return self.folder / "run"

    def recipe(self) -> Recipe:
        """Adapters of rank 16 for both roles on a bf16 backbone; one sample, one update, every block recomputed.

        Two student steps and an anchor of one teacher step: every kind of call that an update has, each few times.
        """
        prompts = self.folder / "prompts.txt"
        prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
        return Recipe.model_validate(
            {
                "model": {"teacher": str(self.teacher), "dtype": "bf16", "height": self.size, "width": self.size},
                "student": {"num_steps": NUM_STEPS},
                "objective": {"name": "dp_dmd", "anchor": {"coarse_steps": 1}},
                "data": {"prompts": str(prompts), "cache": str(self.folder / "cache")},
                "train": {
                    "num_updates": 1,
                    "batch_size": 1,
                    "fake_updates": 1,
                    "reuse_samples": "student",
                    "random_step": True,
                    "precision": "bf16",
                    "gradient_checkpointing": True,
                },
                "lora": {"roles": ("student", "fake_score"), "rank": RANK},
                "validation": {"every": 0},
                "output": {"folder": str(self.run)},
            }
        )


class Memory:
    """The most bytes that were resident since it was made, or since `mark`."""

    def __init__(self):
        self.at_first = resident("VmRSS")
        self.mark()

    def mark(self) -> None:
        """Begin anew."""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak(self) -> int:
        """The most so far."""
        return resident("VmHWM")


def resident(key: str) -> int:
    """VmRSS, the bytes of this process that are resident, or VmHWM, their most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def random_texts(adapter: ModelAdapter) -> Callable[[list[str]], Condition]:
    """An encoder without networks: for each prompt seeded random embeddings of the longest length, nothing masked."""

    def row(prompt: str, blank: Condition) -> Condition:
        def drawn(name: str, tensor: Tensor) -> Tensor:
            random = torch.randn(tensor.shape, generator=generator(0, f"{name}/{prompt}"))
            return random.to(tensor.dtype) if tensor.is_floating_point() else tensor

        return Condition({name: drawn(name, tensor) for name, tensor in blank.tensors.items()})

    def encode(prompts: list[str]) -> Condition:
        rows = [row(prompt, adapter.blank_condition(1)).tensors for prompt in prompts]
        return Condition({name: torch.cat([r[name] for r in rows]) for name in rows[0]})

    return encode


def opened(source: Path) -> ModelAdapter:
    """The adapter of a pipeline folder; with embeddings from `random_texts` if it has no text encoders."""
    adapter: Any = load_adapter(str(source))
    if not (source / "text_encoder").is_dir():
        adapter.texts = SimpleNamespace()
        adapter.encode = adapter.encode_negative = random_texts(adapter)
    return adapter


def plan(work: Work, adapter: ModelAdapter, memory: Memory) -> dict[str, Any]:
    """What `dpdmd plan` counts, and what the other phases are compared with."""
    started = time.perf_counter()
    recipe = work.recipe()
    settled = resolve(recipe, adapter)
    need = memory_need(settled, adapter)
    seconds = time.perf_counter() - started
    sizes = network_sizes(settled, adapter)
    pictures = picture_bytes(resolve(changed_recipe(recipe, ("validation.every=1",)), adapter), adapter)
    state = state_bytes(settled, sizes)
    stays = sum(state.values()) - state["gradients"]
    planned = {
        "load": sizes.frozen,
        "update": need.total,
        "checkpoint": stays,
        "resume": stays,
        "sample": sizes.frozen + pictures,
        "export": sizes.frozen,
    }
    told = {"parameters": num_parameters(adapter), "planned": planned}
    return {"plan": {"seconds": seconds, "peak": memory.peak()}} | told


def load(work: Work, adapter: ModelAdapter, memory: Memory) -> dict[str, Any]:
    """Hash the folder, then load the network alone: not more than one copy may be resident."""
    started = time.perf_counter()
    part_identities(adapter.source)
    hashed = time.perf_counter() - started
    network = adapter.load_network(torch.bfloat16)
    seconds = time.perf_counter() - started - hashed
    for parameter in network.parameters():  # a file that is mapped is not resident until it is read
        if not parameter.detach().sum(dtype=torch.float32).isfinite():
            raise FloatingPointError("the weights have numbers that are not finite")
    facts = {"hash_seconds": hashed, "hash_bytes": folder_bytes(work.teacher)}
    return {"load": {"seconds": seconds, "peak": memory.peak(), **facts}}


def update(work: Work, adapter: ModelAdapter, memory: Memory) -> dict[str, Any]:
    """One update from a fresh folder, then the checkpoint and the student that a run writes at its end."""
    started, found = time.perf_counter(), {}

    def done(row: dict[str, Any]) -> None:
        seconds = {"seconds": time.perf_counter() - started, "update_seconds": row["seconds"]}
        found["update"] = seconds | {"peak": memory.peak()}
        memory.mark()

    run_training(settled_plan(work, adapter), adapter, progress=False, callbacks=[done])
    seconds = time.perf_counter() - started - found["update"]["seconds"]
    found["update"]["written"] = folder_bytes(work.folder / "cache")
    return found | {"checkpoint": {"seconds": seconds, "peak": memory.peak(), "written": folder_bytes(work.run)}}


def resume(work: Work, adapter: ModelAdapter, memory: Memory) -> dict[str, Any]:
    """Load the networks and the checkpoint, whose updates are done, and write the student anew."""
    started, before = time.perf_counter(), read_tensors(work.run / "student" / LORA_FILE)
    shutil.rmtree(work.run / "student")
    run_training(settled_plan(work, adapter), adapter, resume=True, progress=False)
    after = read_tensors(work.run / "student" / LORA_FILE)
    if before.keys() != after.keys() or not all(torch.equal(before[name], after[name]) for name in before):
        raise RuntimeError("the student of the resumed run is another one")
    size = folder_bytes(work.run / "student")
    return {"resume": {"seconds": time.perf_counter() - started, "peak": memory.peak(), "written": size}}


def sample(work: Work, adapter: ModelAdapter, memory: Memory) -> dict[str, Any]:
    """One image of the run's student, with the network in bf16 and the autoencoder in fp32."""
    started = time.perf_counter()
    sampler = load_sampler(str(work.run))
    cond, uncond = adapter.encode([PROMPTS[0]]), adapter.encode_negative([""])
    options = {"grid": sampler.grid, "guidance_scale": 1.0}
    latents = sample_latents(sampler, cond, uncond, [0], sampler.latent_shape(), **options)
    with torch.no_grad():
        image = decoder(sampler.adapter)(latents)[0]
    if not image.isfinite().all():
        raise FloatingPointError("the image has numbers that are not finite")
    picture = work.folder / "sample.png"
    write_png(picture, image.clamp(-1, 1))
    size = picture.stat().st_size
    return {"sample": {"seconds": time.perf_counter() - started, "peak": memory.peak(), "written": size}}


def export(work: Work, adapter: ModelAdapter, memory: Memory) -> dict[str, Any]:
    """The whole pipeline, with the adapter merged into its network."""
    return _exported(work, memory, "export", lora=False)


def export_lora(work: Work, adapter: ModelAdapter, memory: Memory) -> dict[str, Any]:
    """The adapter alone; {} where stock diffusers has no loader for it."""
    return _exported(work, memory, "export_lora", lora=True) if network_takes_lora(adapter) else {}


def _exported(work: Work, memory: Memory, name: str, *, lora: bool) -> dict[str, Any]:
    started = time.perf_counter()
    out = export_run(work.run, work.folder / name, lora=lora)
    facts = {"seconds": time.perf_counter() - started, "peak": memory.peak(), "written": folder_bytes(out)}
    return {name: facts}


PHASES = {phase.__name__: phase for phase in (plan, load, update, resume, sample, export, export_lora)}


def run_phase(name: str, work: Work) -> None:
    """Run a phase in this process and write what it found to NAME.json of the work folder."""
    adapter = opened(work.teacher)
    memory = Memory()
    with products_in_fp32() if are_slow() else nullcontext():
        found = PHASES[name](work, adapter, memory)
    for facts in found.values():
        if isinstance(facts, dict) and "peak" in facts:
            facts["libraries"] = memory.at_first
    write_json(work.folder / f"{name}.json", found)


def read_phase(name: str, work: Work) -> dict[str, Any]:
    """What `run_phase` found."""
    return read_json(work.folder / f"{name}.json")


def settled_plan(work: Work, adapter: ModelAdapter) -> Plan:
    """The plan of the recipe."""
    return resolve(work.recipe(), adapter)
