"""How fast a student draws: it and its teacher draw the same images, one after the other, in one process.

RUN/speed.json has what was measured, and becomes the metrics "speedup" and "seconds_per_image".
"""

import gc
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from scipy import stats

from dpdmd.evaluate.generate import Drawing
from dpdmd.evaluate.intervals import LEVEL
from dpdmd.store.files import write_json
from dpdmd.store.progress import progress_bar
from dpdmd.store.state import Count, State, read_state

SPEED_FILE = "speed.json"
NUM_DRAWS = 5
# Of one draw: enough to be timed, few enough for a GPU that draws large images.
NUM_IMAGES = 4


class SpeedFile(State):
    """speed.json: seconds per image in each draw of the student and of its teacher."""

    device: str
    images_per_draw: Count
    student: list[float] = Field(min_length=1)
    teacher: list[float] = Field(min_length=1)


def measure_speed(
    student: Callable[[], Drawing], teacher: Callable[[], Drawing], prompts: list[str], run: str | Path
) -> None:
    """Time NUM_DRAWS draws of each, after one that is not counted, and write speed.json into the folder `run`.

    student, teacher: load them. Each is freed before the next one is loaded: both together might not fit the memory.
    prompts: the first NUM_IMAGES of them are drawn.
    """
    jobs = [(prompt, 0) for prompt in prompts[:NUM_IMAGES]]
    seconds: dict[str, list[float]] = {}
    with progress_bar(2 * (NUM_DRAWS + 1), "timing teacher and student", unit="draw") as bar:
        for name, load in (("teacher", teacher), ("student", student)):
            drawing, found = load(), []
            for _ in range(NUM_DRAWS + 1):
                started = time.perf_counter()
                list(drawing.draw(jobs))
                found.append((time.perf_counter() - started) / len(jobs))
                bar.update()
            seconds[name] = found[1:]
            del drawing
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    write_json(Path(run) / SPEED_FILE, {"device": device, "images_per_draw": len(jobs), **seconds})


def speed_metrics(run: str | Path) -> dict[str, Any]:
    """What a run's speed.json says as metrics, with "intervals"; {} without the file.

    "speedup" is the ratio of the geometric means over the draws, its interval Welch's t over their logarithms;
    "seconds_per_image" the median.
    """
    path = Path(run) / SPEED_FILE
    if not path.is_file():
        return {}
    found = read_state(path, SpeedFile)
    logs = [[math.log(max(value, 1e-9)) for value in values] for values in (found.teacher, found.student)]
    metrics: dict[str, Any] = {
        "speedup": math.exp(statistics.fmean(logs[0]) - statistics.fmean(logs[1])),
        "seconds_per_image": statistics.median(found.student),
        "reference_seconds_per_image": statistics.median(found.teacher),
    }
    if min(map(len, logs)) > 1:
        interval = stats.ttest_ind(*logs, equal_var=False).confidence_interval(LEVEL)
        if math.isfinite(interval.low):
            metrics["intervals"] = {"speedup": [math.exp(interval.low), math.exp(interval.high)]}
    return metrics
