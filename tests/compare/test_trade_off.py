from itertools import pairwise

import pytest

from dpdmd.compare.arms import Arm, Run
from dpdmd.compare.trade_off import path_runs, paths
from dpdmd.store.files import write_json


def run(tmp_path, name, seed, kept, failed=False):
    folder = tmp_path / f"seed-{seed}" / name
    for step in kept:
        write_json(folder / "students" / f"step-{step:06d}" / "student.json", {})
    failure = {"failure": {"step": 1, "error": "inf"}} if failed else {}
    write_json(folder / "cost_train.json", {"command": []} | failure)
    return Run(Arm(name, "scenes_dmd"), folder, seed)


def test_a_path_has_the_steps_that_all_seeds_kept_before_their_end(tmp_path):
    runs = [
        run(tmp_path, "a", 0, [50, 100, 137]),
        run(tmp_path, "a", 1, [50, 73, 100, 150, 160]),
        run(tmp_path, "a", 2, [50], failed=True),
        run(tmp_path, "b", 0, [20]),
        Run(Arm("teacher", model="scenes"), tmp_path / "t"),
    ]
    points = path_runs(runs)
    assert [(p.arm.name, p.seed, p.folder.relative_to(runs[i].folder).as_posix()) for p, i in zip(
        points, (0, 0, 1, 1), strict=True
    )] == [
        ("a", 0, "path/step-000050"),
        ("a", 0, "path/step-000100"),
        ("a", 1, "path/step-000050"),
        ("a", 1, "path/step-000100"),
    ]  # fmt: skip
    assert points[1].arm.model == str(runs[0].folder / "students" / "step-000100")


def test_of_many_students_eight_are_taken_evenly(tmp_path):
    points = path_runs([run(tmp_path, "a", 0, range(10, 310, 10))])
    steps = [int(point.folder.name[-6:]) for point in points]
    assert len(steps) == 8 and steps[0] == 10 and steps[-1] == 290
    assert {b - a for a, b in pairwise(steps)} == {40}


def test_points_are_means_over_seeds_from_early_to_late(tmp_path):
    points = [
        Run(Arm(name), tmp_path / f"seed-{seed}" / name / "path" / f"step-{step:06d}", seed)
        for seed in (0, 1)
        for name in ("a", "b")
        for step in (100, 50)
    ]
    rows = [{"diversity_share": i / 10, "quality": 0.5, "vendi": 1.0} for i in range(8)]
    found = paths(points, rows)
    assert [row["step"] for row in found["a"]] == [50, 100]
    # Runs come seed by seed: arm a at step 50 is rows 1 and 5.
    assert found["a"][0]["diversity_share"]["mean"] == pytest.approx(0.3)
    assert found["b"][1]["diversity_share"]["values"] == [0.2, 0.6]
    assert set(found["a"][0]) == {"step", "diversity_share", "quality"}


def test_an_arm_whose_runs_all_failed_has_no_path(tmp_path):
    assert path_runs([run(tmp_path, "a", 0, [50, 100], failed=True)]) == []
