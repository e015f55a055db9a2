import pytest
import torch

from dpdmd.evaluate.manifest import ImageEntry, write_manifest
from dpdmd.report import build
from dpdmd.report.runs import read_runs
from dpdmd.store.files import write_json
from dpdmd.store.png import write_png


def _samples(folder, prompt="a red circle"):
    write_png(folder / "0.png", torch.zeros(3, 8, 8))
    write_manifest(folder, [ImageEntry(prompt, 0, "0.png")], {"num_inference_steps": 4})


def test_a_folder_of_runs_gives_its_arms_in_the_known_order(tmp_path):
    for name in ("zeta", "dp_dmd", "teacher", "dmd"):
        _samples(tmp_path / name / "samples")
    write_json(tmp_path / "dmd" / "metrics.json", {"diversity": 0.1, "vendi": 2.0})
    write_json(tmp_path / "metrics.json", {"arms": {"dmd": {"diversity": 0.2}, "adversarial": {"diversity": 0.3}}})
    arms = read_runs([tmp_path])
    assert list(arms) == ["teacher", "dmd", "dp_dmd", "adversarial", "zeta"]
    assert arms["dmd"].label == "DMD" and arms["dmd"].metrics == {"diversity": 0.2, "vendi": 2.0}
    assert arms["adversarial"].metrics == {"diversity": 0.3} and arms["adversarial"].images is None
    assert arms["zeta"].images.info == {"num_inference_steps": 4}


def test_single_runs_are_arms_and_equal_names_stay_apart(tmp_path):
    for parent in ("a", "b"):
        _samples(tmp_path / parent / "run")
    assert list(read_runs([tmp_path / "a" / "run", tmp_path / "b" / "run"])) == ["run", "run (2)"]


def test_folders_without_anything_to_report_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to report"):
        read_runs([tmp_path])
    with pytest.raises(ValueError, match="no such run folder"):
        read_runs([tmp_path / "nowhere"])
    (tmp_path / "demo").mkdir()
    with pytest.raises(ValueError, match=rf"no such run folder: .*dmeo; did you mean {tmp_path / 'demo'}\?"):
        read_runs([tmp_path / "dmeo"])


@pytest.mark.parametrize("place", ["student/student.json", "student.json"])
def test_a_broken_student_is_one_sentence_that_names_its_file(tmp_path, place):
    for name in ("good", "broken"):
        _samples(tmp_path / name)
        write_json(tmp_path / name / place, {"base": "scenes", "grid": [1.0, 0.0]})
    (tmp_path / "broken" / place).write_text('{"base"')
    assert list(read_runs([tmp_path / "good"])) == ["good"]
    with pytest.raises(ValueError, match=f"{tmp_path / 'broken' / place} is not valid JSON") as error:
        read_runs([tmp_path / "good", tmp_path / "broken"])
    assert "\n" not in str(error.value)


def test_a_report_that_could_not_be_written_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "read_runs", lambda runs: pytest.fail("began to read"))
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file" / "report.html"):
        with pytest.raises(OSError, match=f"cannot write the report {out}"):
            build.report_from_runs([tmp_path], out)


def test_metrics_of_validation_come_after_the_log_of_updates(tmp_path):
    (tmp_path / "run/validation").mkdir(parents=True)
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1, "loss/dmd": 2}\n')
    (tmp_path / "run/validation/scores.jsonl").write_text('{"step": 1, "validation/quality": 0.5}\n')
    (arm,) = read_runs([tmp_path / "run"]).values()
    assert arm.log == [{"step": 1, "loss/dmd": 2}, {"step": 1, "validation/quality": 0.5}]


def test_a_run_that_was_scored_comes_with_its_teacher(tmp_path):
    run = tmp_path / "run"
    _samples(run / "samples", "a look")
    for place in ("step-000003", "teacher"):
        _samples(run / "evaluation" / place)
    (run / "recipe.toml").write_text('[model]\nteacher = "scenes"\n[train]\nnum_updates = 5\n')
    (run / "metrics.jsonl").write_text('{"step": 3}\n')
    rows = [{"prompt": "a red circle", "diversity": 0.2, "reference_diversity": 0.4}]
    write_json(run / "metrics.json", {"diversity_share": 0.5, "reference_clip_score": 31.0, "per_prompt": rows})
    speed = {"device": "CPU", "images_per_draw": 4, "student": [0.1, 0.11, 0.12], "teacher": [1.0, 1.1, 1.2]}
    write_json(run / "speed.json", speed)
    arms = read_runs([run])
    assert list(arms) == ["teacher", "run"]
    # The images that were scored, and not those that somebody only looked at.
    assert arms["run"].samples == run / "evaluation/step-000003"
    assert arms["teacher"].samples == run / "evaluation/teacher"
    assert arms["teacher"].metrics["clip_score"] == 31.0 and arms["teacher"].metrics["diversity"] == 0.4
    assert arms["teacher"].metrics["seconds_per_image"] == 1.1 and arms["run"].metrics["seconds_per_image"] == 0.11
    assert (arms["run"].status.done, arms["run"].status.planned, arms["run"].status.is_finished) == (3, 5, False)
    # Of two runs with different teachers neither is the teacher of both.
    other = tmp_path / "other"
    other.mkdir()
    (other / "recipe.toml").write_text('[model]\nteacher = "scenes_eps"\n')
    (other / "metrics.jsonl").write_text("")
    assert list(read_runs([run, other])) == ["run", "other"]
