"""What only a GPU can show, in parts of at most 8 minutes, each of which writes its JSON and can be repeated alone.

    python -m benchmarks.gpu cycle --out benchmarks/results/gpu
    torchrun --nproc-per-node=2 -m benchmarks.gpu processes --out benchmarks/results/gpu

    cycle           a cycle against the reference's schedule: samples per second, share of the card's bf16 peak
    memory          peak and seconds of an update in six layouts, against what `dpdmd plan` says
    recomputing     no blocks, half of them and all of them recomputed: seconds and peak
    compile         with and without train.compile: seconds, and the largest difference of the student's samples
    processes       copies and shares: seconds per update, and the bytes that are sent; start it by torchrun
    sampling        a student's 4 calls against the teacher's 60

The network has random weights and the size of SD3.5-medium's (24 blocks of width 1536, 1024 x 1024 pixels). Without a
GPU `--tiny` runs the same code on a network of two narrow blocks. What does not fit the card is recorded as such.
"""

import argparse
import gc
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cycle import (
    CHECKPOINTED,
    PROMPTS,
    SAVING,
    merged,
    num_bytes,
    our_trainer,
    peak,
    resident,
    save_model,
    timed,
)
from benchmarks.reference import ReferenceRun
from dpdmd.planning.fit import memory_need
from dpdmd.planning.hours import CARDS, update_operations
from dpdmd.store.errors import is_out_of_memory
from dpdmd.store.files import write_json
from dpdmd.store.provenance import surroundings
from dpdmd.training.trainer import Trainer

BF16 = {"train": {"precision": "bf16"}}
SHARED = {"lora": {"roles": ["student", "fake_score"], "rank": 64}, "model": {"dtype": "bf16"}}
LAYOUTS = {
    "copies": CHECKPOINTED,
    "copies, 8-bit moments": merged(CHECKPOINTED, {"train": {"optimiser": "adamw_8bit"}}),
    "copies, offloaded moments": merged(CHECKPOINTED, {"train": {"optimiser": "adamw_offloaded"}}),
    "copies, Adafactor": merged(CHECKPOINTED, {"train": {"optimiser": "adafactor"}}),
    "one backbone": merged(CHECKPOINTED, SHARED),
    "one backbone in fp8": merged(CHECKPOINTED, SHARED, {"model": {"dtype": "fp8"}}),
}


@dataclass(frozen=True)
class Size:
    """Of the network and of what is measured: latents have `latent` numbers a side; `repeats` cycles are timed."""

    width: int = 1536
    blocks: int = 24
    latent: int = 128
    batch_size: int = 4
    repeats: int = 3


TINY = Size(width=64, blocks=2, latent=8, batch_size=1, repeats=1)


@dataclass(frozen=True)
class Setting:
    """What a part is given: the model, a folder to work in, the size."""

    model: Path
    work: Path
    size: Size

    def trainer(self, *settings: dict) -> Trainer:
        """A run of the recipes' settings in bf16, with further ones, before its first update."""
        return our_trainer(self.model, self.work, merged(SAVING, BF16, *settings), self.size.batch_size)


def seconds_of(cycle: Callable[[], Any], size: Size) -> float:
    """Mean seconds of a cycle, after one that is not timed."""
    cycle()
    return sum(timed(cycle) for _ in range(size.repeats)) / size.repeats


def peak_bytes_of(trainer: Trainer) -> int:
    """Bytes at the peak of an update: those that the GPU's allocator gave out, or without one those of all tensors."""
    if not torch.cuda.is_available():
        return peak(trainer.iterate, lambda: resident(trainer))
    torch.cuda.reset_peak_memory_stats()
    trainer.iterate()
    return torch.cuda.max_memory_allocated()


def card_peak() -> float | None:
    """Operations per second in bf16 of this card's data sheet, None for one that is not in our table."""
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    return next((card.bf16 * 1e12 for card in CARDS if card.name.split()[0] in name), None)


def arms(table: dict[str, dict], measure: Callable[[dict], dict[str, Any]]) -> dict[str, Any]:
    """`measure` of each row of settings, one after the other; what does not fit is recorded."""
    rows: dict[str, Any] = {}
    for name, settings in table.items():
        try:
            rows[name] = measure(settings)
        except (RuntimeError, ValueError, OSError) as error:
            if not is_out_of_memory(error) and "not installed" not in str(error):
                raise
            rows[name] = {"not measured": str(error).splitlines()[0][:200]}
        gc.collect()
        torch.cuda.empty_cache()
        print(f"{name}: {rows[name]}", flush=True)
    return rows


def cycle(setting: Setting) -> dict[str, Any]:
    """The reference's cycle and ours, each alone on the card."""
    size = setting.size
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def measure(settings: dict) -> dict[str, Any]:
        if not settings:
            reference = ReferenceRun(setting.model, PROMPTS, size.batch_size, device, setting.work)
            with torch.autocast(device.type, torch.bfloat16):
                return rates(seconds_of(lambda: reference.cycle(lambda name: nullcontext()), size), None)
        trainer = setting.trainer(settings)
        operations = update_operations(trainer.plan, trainer.parts.adapter)
        return rates(seconds_of(trainer.iterate, size), operations)

    def rates(seconds: float, operations: float | None) -> dict[str, Any]:
        row: dict[str, Any] = {"seconds": seconds, "samples_per_second": size.batch_size / seconds}
        if operations is not None:
            row["operations"] = operations
            row["share_of_peak"] = operations / seconds / top if (top := card_peak()) else None
        return row

    return arms(
        {"reference": {}, "recipe": CHECKPOINTED, "recipe, one backbone": merged(CHECKPOINTED, SHARED)}, measure
    )


def memory(setting: Setting) -> dict[str, Any]:
    """Peaks of an update, the plan's, and seconds: what is moved or converted costs some."""

    def measure(settings: dict) -> dict[str, Any]:
        trainer = setting.trainer(settings, {"validation": {"every": 0}})
        trainer.iterate()
        planned = memory_need(trainer.plan, trainer.parts.adapter)
        measured = peak_bytes_of(trainer)
        row = {"measured": measured, "planned": planned.total, "ratio": planned.total / measured}
        return row | {"seconds": timed(trainer.iterate)}

    return arms(LAYOUTS, measure)


def recomputing(setting: Setting) -> dict[str, Any]:
    """Seconds and peaks with none, half and all of the blocks recomputed, adapters on one backbone."""
    half = max(1, setting.size.blocks // 2)
    table = {str(number): {"train": {"gradient_checkpointing": number}} for number in (False, half, True)}

    def measure(settings: dict) -> dict[str, Any]:
        trainer = setting.trainer(SHARED, settings)
        return {"seconds": seconds_of(trainer.iterate, setting.size), "bytes": peak_bytes_of(trainer)}

    return arms(table, measure)


def compiled(setting: Setting) -> dict[str, Any]:
    """Seconds with and without compiled blocks, and how far the first logged losses are apart."""

    def measure(settings: dict) -> dict[str, Any]:
        trainer = setting.trainer(SHARED, settings)
        first = trainer.iterate()
        losses = {key: value for key, value in first.items() if key.startswith("loss/")}
        return {"seconds": seconds_of(trainer.iterate, setting.size), **losses}

    return arms({"eager": {}, "compiled": {"train": {"compile": True}}}, measure)


def processes(setting: Setting) -> dict[str, Any]:
    """Seconds per update of copies and shares in the processes that torchrun started; alone, of one process."""
    from benchmarks.sharding import Traffic

    number = int(torch.distributed.get_world_size()) if torch.distributed.is_initialized() else 1
    table = {"copies": {}, "shares": {"train": {"shard": True}}} if number > 1 else {"one process": {}}

    def measure(settings: dict) -> dict[str, Any]:
        trainer = setting.trainer(SHARED, settings)
        seconds = seconds_of(trainer.iterate, setting.size)
        with Traffic() as traffic:
            trainer.iterate()
        sent = {f"{name} in {size}": count for (name, size), count in traffic.sent.items()}
        samples = setting.size.batch_size * trainer.accelerator.num_processes
        return {"seconds": seconds, "samples_per_second": samples / seconds, "bytes_sent": sent}

    return arms(table, measure)


def sampling(setting: Setting) -> dict[str, Any]:
    """Seconds of one image by 4 unguided calls of a student and by 60 calls, 30 guided steps, of its teacher."""
    trainer = setting.trainer(SHARED)
    batch = trainer.batches.micro_batch("student", 0, 0)
    noise, cond, uncond = batch.noise[:1], batch.cond[:1], batch.uncond[:1]
    grid = trainer.plan.student.grid

    @torch.no_grad()
    def student() -> None:
        for i in range(grid.num_steps):
            trainer.denoisers.student(noise, grid.time(i, noise), cond)

    calls = trainer.plan.teacher.grid.num_steps * trainer.plan.teacher.guidance.num_forwards
    return {
        "student": {"calls": grid.num_steps, "seconds": seconds_of(student, setting.size)},
        "teacher": {
            "calls": calls,
            "seconds": seconds_of(lambda: trainer.parts.teacher.rollout(noise, cond, uncond), setting.size),
        },
        "bytes": num_bytes(resident(trainer)),
    }


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "cycle": cycle,
    "memory": memory,
    "recomputing": recomputing,
    "compile": compiled,
    "processes": processes,
    "sampling": sampling,
}


def run_part(name: str, size: Size, work: Path, out: Path) -> Path:
    """Run one part with a model in `work`, which is made unless it is there; returns the JSON that it wrote."""
    model = work / f"model-{size.width}-{size.blocks}-{size.latent}"
    work.mkdir(parents=True, exist_ok=True)
    if not (model / "model_index.json").exists():
        save_model(model, width=size.width, num_blocks=size.blocks, latent_size=size.latent)
    result = PARTS[name](Setting(model, work, size))
    path = out / f"{name}.json"
    write_json(path, {"part": name, "size": vars(size), "result": result, **surroundings("python -m benchmarks.gpu")})
    return path


def main() -> None:
    """Run the parts that are named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), help="folder of the JSON files")
    parser.add_argument("--work", type=Path, help="folder for the model (9 GB); default: a temporary one")
    parser.add_argument("--tiny", action="store_true", help="a network of two narrow blocks")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    if not (torch.cuda.is_available() or arguments.tiny):
        parser.error("there is no GPU here: add --tiny to try the code on a CPU")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.parts:
            path = run_part(name, TINY if arguments.tiny else Size(), arguments.work or Path(folder), arguments.out)
            print(f"written to {path}")


if __name__ == "__main__":
    main()
