"""Speed: what speed.json says as metrics, and that both models draw the same images."""

import math
from functools import partial

import numpy as np
import pytest
from scipy import stats

from dpdmd.evaluate import speed
from dpdmd.evaluate.generate import Drawing
from dpdmd.evaluate.speed import NUM_DRAWS, NUM_IMAGES, measure_speed, speed_metrics
from dpdmd.store.files import read_json, write_json

TEACHER, STUDENT = [1.0, 1.2, 1.1, 0.9, 1.3], [0.1, 0.12, 0.09, 0.11, 0.1]


def test_the_speedup_is_the_ratio_of_geometric_means_with_welchs_interval(tmp_path):
    write_json(tmp_path / "speed.json", {"device": "x", "images_per_draw": 4, "student": STUDENT, "teacher": TEACHER})
    found = speed_metrics(tmp_path)
    assert found["speedup"] == pytest.approx(stats.gmean(TEACHER) / stats.gmean(STUDENT))
    assert found["seconds_per_image"] == 0.1 and found["reference_seconds_per_image"] == 1.1
    # Welch (1947), written out.
    logs = [np.log(TEACHER), np.log(STUDENT)]
    parts = [np.var(log, ddof=1) / 5 for log in logs]
    degrees = sum(parts) ** 2 / sum(part**2 / 4 for part in parts)
    half = stats.t.ppf(0.975, degrees) * math.sqrt(sum(parts))
    centre = math.log(found["speedup"])
    assert found["intervals"]["speedup"] == pytest.approx([math.exp(centre - half), math.exp(centre + half)])
    assert speed_metrics(tmp_path / "none") == {}


def test_each_model_draws_the_same_images_and_the_first_draw_is_not_counted(tmp_path, monkeypatch):
    clock, drawn = [0.0], []
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])

    def load(name, seconds):
        def draw(jobs):
            # What is loaded or compiled at the first draw takes a minute.
            clock[0] += seconds * len(jobs) + (60 if name not in [n for n, _ in drawn] else 1e-3 * len(drawn))
            drawn.append((name, tuple(jobs)))
            return jobs

        return Drawing(draw, {})

    prompts = [f"prompt {i}" for i in range(9)]
    measure_speed(partial(load, "student", 0.25), partial(load, "teacher", 2.0), prompts, tmp_path)
    found = read_json(tmp_path / "speed.json")
    assert found["student"] == pytest.approx([0.25] * NUM_DRAWS, abs=0.01) and found["teacher"] == pytest.approx(
        [2.0] * NUM_DRAWS, abs=0.01
    )
    assert {jobs for _, jobs in drawn} == {tuple((prompt, 0) for prompt in prompts[:NUM_IMAGES])}
    assert speed_metrics(tmp_path)["speedup"] == pytest.approx(8, rel=0.02)
