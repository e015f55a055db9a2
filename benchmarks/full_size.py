"""Train, resume, sample and export a family's network at its published size, with random weights.

    python -m benchmarks.full_size FAMILY

The configurations are those in the package, so that no download is needed; what is written lies in a temporary folder
and is removed. Each phase runs in a process of its own: the plan, loading (and hashing), one update at 256 x 256 pixels
with adapters of rank 16 for both roles, the checkpoint (in the process of the update, whose peak is set back), resuming
from it, one image, and both exports. Seconds, the most resident memory beside what the planner counts,
and bytes written go to benchmarks/results/full_size.json, and from there into docs/performance.md.

Embeddings are random and cached, unless --texts: then text encoders of the published size are written, loaded, used and
freed first (Stable Diffusion 1 and XL). Linux only; what does not fit is recorded with its figure and not run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bf16_products import are_slow
from benchmarks.full_size_phases import PHASES, Work, read_phase, run_phase
from benchmarks.full_size_table import PAGE, fill_page
from benchmarks.random_pipeline import write_pipeline
from dpdmd.models.load import load_adapter, published_models
from dpdmd.planning.cost import num_parameters
from dpdmd.store.files import read_json, write_json
from dpdmd.store.provenance import surroundings

RESULTS = Path("benchmarks", "results", "full_size.json")
FAMILIES = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "pixart_sigma": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    "sana": "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
    "sd35_medium": "stabilityai/stable-diffusion-3.5-medium",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "lumina2": "Alpha-VLLM/Lumina-Image-2.0",
    "flux2_klein": "black-forest-labs/FLUX.2-klein-base-4B",
    "z_image": "Tongyi-MAI/Z-Image",
}
GIB = 2**30
LIBRARIES = GIB  # resident before anything is loaded: torch, diffusers, transformers; measured 0.5 to 0.7 GiB
SIZE = 256


def main() -> None:
    """Try one family and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", help=f"{', '.join(FAMILIES)}, or a folder of configurations")
    parser.add_argument("--texts", action="store_true", help="with text encoders of the published size")
    parser.add_argument("--size", type=int, default=SIZE, help="pixels of a side of the images")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown file with the table")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase:
        run_phase(arguments.phase, Work(arguments.work, arguments.size))
        return
    found = tried(arguments.family, size=arguments.size, texts=arguments.texts)
    results = read_json(arguments.results) if arguments.results.is_file() else {}
    write_json(arguments.results, results | {Path(arguments.family).name: found})
    fill_page(arguments.page, read_json(arguments.results))
    print(f"written to {arguments.results} and {arguments.page}")
    if "failed" in found:
        sys.exit(f"{arguments.family}: the phase {found['failed']} failed")


def tried(family: str, *, size: int = SIZE, texts: bool = False) -> dict[str, Any]:
    """All phases of a family, or those before one that failed, which has said why.

    Raises ValueError for an unknown family, OSError where the disk has too little room.
    """
    if family not in FAMILIES and not Path(family).is_dir():
        raise ValueError(f"{family} is none of {', '.join(FAMILIES)}, nor a folder of configurations")
    source = published_models()[FAMILIES[family]] if family in FAMILIES else Path(family)
    adapter = load_adapter(str(source))
    room = 6 * num_parameters(adapter) + 4 * GIB  # bf16 teacher and export, and an adapter's checkpoint
    found: dict[str, Any] = {"model": FAMILIES.get(family, family), "size": size, "texts": texts}
    command = f"python -m benchmarks.full_size {family}" + (" --texts" if texts else "")
    found["provenance"] = surroundings(command) | {"products_in_fp32": are_slow()}
    with tempfile.TemporaryDirectory(prefix="full_size-") as folder:
        work = Work(Path(folder), size)
        if (free := shutil.disk_usage(folder).free) < room:
            raise OSError(f"{folder} has {free / GIB:.1f} GiB free and {room / GIB:.1f} GiB are needed")
        started = time.perf_counter()
        written = write_pipeline(adapter, work.teacher, texts=texts)
        phases = {"write": {"seconds": time.perf_counter() - started, "written": written}}
        for name in PHASES:
            print(f"{family}: {name}", flush=True)
            try:
                told = _in_process(name, work)
            except subprocess.CalledProcessError:
                if name == "plan":
                    raise
                return found | {"phases": phases, "failed": name}
            if name == "plan":
                found |= {key: told.pop(key) for key in ("parameters", "planned")}
                needed, available = found["planned"]["update"] + LIBRARIES, available_memory()
                if needed > available:
                    found["not_run"] = {"needed": needed, "available": available}
                    return found
            phases |= told
    return found | {"phases": phases}


def _in_process(name: str, work: Work) -> dict[str, Any]:
    """Run a phase in a process of its own, with caches of its own; returns what it found."""
    arguments = [str(work.teacher), "--phase", name, "--work", str(work.folder), "--size", str(work.size)]
    environment = os.environ | {"DPDMD_CACHE": str(work.folder / "cache")}
    subprocess.run([sys.executable, "-m", "benchmarks.full_size", *arguments], check=True, env=environment)
    return read_phase(name, work)


def available_memory() -> int:
    """Bytes that this machine can give to new processes without swapping."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])


if __name__ == "__main__":
    main()
