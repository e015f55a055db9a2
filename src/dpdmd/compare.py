"""Compare arms under one budget: each is trained, sampled and scored by the commands that a user would type.

An arm is a teacher that is only sampled, or a recipe that is trained first. Every command runs in a process of its
own, so that its time and peak memory are its own; what a finished command left behind is not made again.
"""

import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

from dpdmd.evaluate.run import evaluate_folder
from dpdmd.files import read_json, write_json, write_text

REFERENCE = "teacher"
HEADLINE = (
    "diversity",
    "diversity_share",
    "prompts_near_reference",
    "named_accuracy",
    "validity",
    "effective_modes",
    "total_variation_reference",
    "frechet",
)


@dataclass(frozen=True)
class Arm:
    """One row: `recipe` (file or shipped name) with `overrides` for a student, or None for the teacher itself.

    `sampling`: further arguments of `dpdmd sample`. The arm called "teacher" is what the others are compared with.
    """

    name: str
    recipe: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    sampling: tuple[str, ...] = ()


def compare_arms(
    arms: list[Arm], out: str | Path, *, teacher: str, prompts: list[str], num_seeds: int, jobs: int = 1
) -> dict[str, dict[str, Any]]:
    """Run all arms into `out`/NAME, `jobs` side by side (`run_arms`), and score them against the teacher's images.

    Writes `out`/metrics.json, {"arms": {name: {"diversity", "diversity_share", "named_accuracy", "validity",
    "effective_modes", "seconds", "peak_memory_bytes", "intervals", ...}}}, and returns its "arms".
    Raises ValueError without an arm "teacher", ChildProcessError when a command fails.
    """
    if REFERENCE not in [arm.name for arm in arms]:
        raise ValueError(f'one arm must be called "{REFERENCE}": the others are compared with it')
    out = Path(out)
    tasks = [(arm, out / arm.name) for arm in arms]
    run_arms(tasks, out / "prompts.txt", teacher=teacher, prompts=prompts, num_seeds=num_seeds, jobs=jobs)
    rows = score_arms({arm.name: out / arm.name for arm in arms})
    write_json(out / "metrics.json", {"arms": rows})
    return rows


def run_arms(
    tasks: list[tuple[Arm, Path]], prompt_file: Path, *, teacher: str, prompts: list[str], num_seeds: int, jobs: int = 1
) -> None:
    """Train and sample every (arm, folder), `jobs` side by side, each on its share of the cores.

    Side by side on one core each is faster than one after the other on all of them: networks this small do not fill
    several cores. When one fails, or on Ctrl-C, those under way finish or save, and no other is begun.
    """
    write_text(prompt_file, "\n".join(prompts) + "\n")
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)
    threads = max(1, (os.cpu_count() or 1) // jobs)

    stopped = Event()

    def run(arm: Arm, folder: Path) -> None:
        if stopped.is_set():
            return
        slot = slots.get()
        environment = {"OMP_NUM_THREADS": str(threads), "TQDM_POSITION": str(slot)} if jobs > 1 else {}
        try:
            run_arm(arm, folder, teacher=teacher, prompt_file=prompt_file, num_seeds=num_seeds, environment=environment)
        except BaseException:
            stopped.set()
            raise
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, arm, folder) for arm, folder in tasks]
        try:
            for future in futures:
                future.result()
        finally:
            stopped.set()


def score_arms(folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Score arms that have been sampled, each against "teacher"; writes metrics.json into each arm's folder.

    Returns per arm its metrics and costs, without the rows per prompt; a headline that cannot be had (no valid image,
    say) is None.
    """
    rows = {}
    for name, folder in folders.items():
        reference = folders[REFERENCE] / "samples"
        metrics = evaluate_folder(folder / "samples", reference=reference, out=folder / "metrics.json")
        scores = {key: value for key, value in metrics.items() if key != "per_prompt"}
        rows[name] = dict.fromkeys(HEADLINE) | scores | read_json(folder / "cost.json")
    return rows


def run_arm(
    arm: Arm,
    folder: Path,
    *,
    teacher: str,
    prompt_file: Path,
    num_seeds: int,
    environment: dict[str, str] | None = None,
) -> None:
    """Train (if the arm is a student) and sample one arm into `folder`, resuming what was interrupted.

    `environment`: variables of the commands, on top of this process's own.

    Writes cost.json: wall-clock "seconds" of all commands, the largest "peak_memory_bytes" of any.
    Raises ValueError when `folder` holds what other arguments made.
    """
    steps = []
    if arm.recipe is not None:
        settings = {**arm.overrides, "output.folder": str(folder)}
        sets = [part for key, value in settings.items() for part in ("--set", f"{key}={_toml(value)}")]
        steps.append(("train", arm.recipe, *sets))
    model = teacher if arm.recipe is None else str(folder)
    places = ("--prompts", str(prompt_file), "--out", str(folder / "samples"))
    steps.append(("sample", model, *places, "--images-per-prompt", str(num_seeds), "--seed", "0", *arm.sampling))
    costs = [_once(folder, step, environment or {}) for step in steps]
    total = {
        "seconds": sum(cost["seconds"] for cost in costs),
        "peak_memory_bytes": max(cost["peak_memory_bytes"] for cost in costs),
    }
    write_json(folder / "cost.json", total)


def _once(folder: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> dict[str, Any]:
    """Run a command unless it has been finished in `folder` before; returns what it cost then or now."""
    record = folder / f"cost_{arguments[0]}.json"
    if record.exists():
        cost = read_json(record)
        if cost["command"] != list(arguments):
            raise ValueError(
                f"{folder} was made by `dpdmd {shlex.join(cost['command'])}`, now asked for "
                f"`dpdmd {shlex.join(arguments)}`; choose another folder or remove this one"
            )
        return cost
    is_begun = arguments[0] == "train" and (folder / "recipe.toml").exists()
    cost = {"command": list(arguments), **_run([*arguments, *(["--resume"] if is_begun else [])], environment)}
    write_json(record, cost)
    return cost


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _run(arguments: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Run `dpdmd ARGUMENTS` in a process of its own; returns its seconds and peak memory."""
    print(f"\n$ dpdmd {shlex.join(arguments)}", flush=True)
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "dpdmd", *arguments], env=os.environ | environment)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        # The terminal has sent Ctrl-C to the child as well: let it save before we go.
        os.wait4(process.pid, 0)
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ChildProcessError(f"dpdmd {shlex.join(arguments)} ended with exit code {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": time.perf_counter() - started, "peak_memory_bytes": usage.ru_maxrss * unit}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The headline figures as a Markdown table, intervals over prompts in brackets."""

    def cell(row: dict[str, Any], key: str) -> str:
        value = row.get(key)
        if value is None:
            return "-"
        low_high = row.get("intervals", {}).get(key)
        return f"{value:.3f}" + (f" [{low_high[0]:.3f}, {low_high[1]:.3f}]" if low_high else "")

    lines = [f"| arm | {' | '.join(name.replace('_', ' ') for name in HEADLINE)} | seconds | MiB |"]
    lines.append("|---" * (len(HEADLINE) + 3) + "|")
    for name, row in rows.items():
        cells = [cell(row, key) for key in HEADLINE]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {row['seconds']:.0f} | {row['peak_memory_bytes'] / 2**20:.0f} |"
        )
    return "\n".join(lines)
