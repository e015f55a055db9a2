"""What sharded training (train.shard) sends per update, and what it holds while it starts, counted in gloo processes.

    python -m benchmarks.sharding --json benchmarks/results/sharding.json

The model is a random SD3 whose blocks hold nearly all weights. Bytes are those that one process sends in one student
update and its fake-score update, as `torch.distributed.tensor.debug.CommDebugMode` sees the collective operations: of a
gathering (k - 1) / k of the whole in a group of k, as much of a reduction that scatters, twice that of another (ring
algorithms). Memory is what a process itself has at the peak of starting above what it had before.
"""

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cycle import PROMPTS, merged, our_trainer, save_model
from dpdmd.store.files import write_json
from dpdmd.store.provenance import surroundings

c10d = torch.ops.c10d
SHARDED = {"train": {"shard": True, "fake_updates": 1}}
ACCUMULATED = {"train": {"accumulation": 2}}
BF16 = {"train": {"precision": "bf16"}}
ADAPTERS = {"lora": {"roles": ["student", "fake_score"], "rank": 16}, "model": {"dtype": "bf16"}}
ARMS = {
    "fp32": SHARDED,
    "fp32, two micro-batches": merged(SHARDED, ACCUMULATED),
    "bf16": merged(SHARDED, BF16),
    "bf16, two micro-batches": merged(SHARDED, BF16, ACCUMULATED),
    "bf16, adapters": merged(SHARDED, BF16, ADAPTERS),
    "bf16, adapters, two micro-batches": merged(SHARDED, BF16, ADAPTERS, ACCUMULATED),
}


class Traffic(CommDebugMode):
    """Within the block `sent` counts the bytes that this process sends: {(operation, size of its group): bytes}."""

    def __init__(self):
        super().__init__()
        self.sent: Counter[tuple[str, int]] = Counter()

    def __enter__(self):
        # Not its tracker of modules, which fails where networks are called within each other's backward passes.
        tracker = self.advanced_module_tracker
        tracker.name, tracker.module_parents_dict = "Global", {"Global": set()}
        TorchDispatchMode.__enter__(self)
        return self

    def __exit__(self, *error) -> None:
        TorchDispatchMode.__exit__(self, *error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        packet = getattr(func, "_overloadpacket", None)
        if packet in (c10d._allgather_base_, c10d._reduce_scatter_base_):
            whole, part = max(args[0].nbytes, args[1].nbytes), min(args[0].nbytes, args[1].nbytes)
            name = "gathered" if packet is c10d._allgather_base_ else "scattered"
            self.sent[name, whole // part] += whole - part
        elif packet is c10d.allreduce_:
            number = torch.distributed.ProcessGroup.unbox(args[1]).size()
            size = sum(tensor.nbytes for tensor in args[0])
            self.sent["reduced", number] += 2 * size * (number - 1) // number
        elif not any(issubclass(kind, DTensor) for kind in types):
            return func(*args, **(kwargs or {}))  # not recorded, which takes longer than to compute it
        return super().__torch_dispatch__(func, types, args, kwargs)


class PeakMemory:
    """After the block `added` is how many bytes of its own a process had at the peak above what it had before (Linux).

    Not the pages of files that it has mapped: they are the kernel's cache, which reads ahead and gives them up when
    memory is short. The kernel keeps no peak without them, so that a thread looks every millisecond.
    """

    def __enter__(self):
        self._before = self._peak = own_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(1e-3):
            self._peak = max(self._peak, own_bytes())

    def __exit__(self, *error) -> None:
        self._ended.set()
        self._thread.join()
        self.added = max(self._peak, own_bytes()) - self._before


def own_bytes() -> int:
    """Bytes that this process has by itself, without pages of files (Linux)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))


def measure(model: Path, work: Path, settings: dict, number: int, start_only: bool) -> dict[str, Any]:
    """One process's part of an arm: bytes sent in an update after the first, and memory of starting."""
    with PeakMemory() as memory:
        trainer = our_trainer(model, work, settings, batch_size=1)
    network = sum(p.numel() for p in trainer.roles.modules["teacher"].parameters())
    if start_only:
        return {"parameters": network, "processes": number, "bytes_sent": {}, "start_bytes": memory.added}
    trainer.iterate()
    with Traffic() as traffic:
        started = time.perf_counter()
        trainer.iterate()
        seconds = time.perf_counter() - started
    return {
        "parameters": network,
        "processes": number,
        "bytes_sent": {f"{name} in {size}": count for (name, size), count in sorted(traffic.sent.items())},
        "collectives": {str(op): count for op, count in traffic.get_comm_counts().items()},
        "start_bytes": memory.added,
        "seconds": seconds,
    }


def _work(
    rank: int, number: int, port: int, model: Path, work: Path, settings: dict, out: Path, start_only: bool
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    row = measure(model, work, settings, number, start_only)
    if rank == 0:
        write_json(out, row)
    torch.distributed.destroy_process_group()


def in_processes(number: int, model: Path, work: Path, settings: dict, *, start_only: bool) -> dict[str, Any]:
    """`measure` in so many processes; returns the row of the first."""
    context, out = multiprocessing.get_context("spawn"), work / "row.json"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    arguments = (number, port, model, work, settings, out, start_only)
    processes = [context.Process(target=_work, args=(rank, *arguments)) for rank in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("a process failed")
    return json.loads(out.read_text())


def main() -> None:
    """Measure all arms, print them, and write them to a file if asked."""
    parser = argparse.ArgumentParser(description="What sharded training sends and holds.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--start-only", action="store_true", help="memory only, without an update")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=6)
    args = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        save_model(model, width=args.width, num_blocks=args.blocks, latent_size=16)
        for name in args.arms:
            work = Path(folder) / name.replace(", ", "-").replace(" ", "-")
            work.mkdir()
            (work / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
            rows[name] = in_processes(args.processes, model, work, ARMS[name], start_only=args.start_only)
            sent = ", ".join(f"{kind} {size / 2**20:.1f}" for kind, size in rows[name]["bytes_sent"].items())
            start = rows[name]["start_bytes"] / 2**20
            size = f"{rows[name]['parameters']:,} parameters"
            print(f"{name}: {size}; MiB sent per update: {sent}; starting {start:.0f} MiB", flush=True)
    if args.json:
        write_json(args.json, {"arms": rows, "setup": surroundings()})


if __name__ == "__main__":
    main()
