"""A negative prompt when a model is sampled, and what a student of it hands on."""

import pytest

from dpdmd.audit import _as_trained
from dpdmd.evaluate.generate import generate_folder
from dpdmd.evaluate.stock import Call
from dpdmd.models.load import load_adapter, load_sampler
from dpdmd.models.student_file import StudentFile
from dpdmd.publish.export import export_run
from dpdmd.store.png import read_png
from dpdmd.store.tensors import write_tensors

DRAW = {"prompts": ["a red circle"], "seeds": [0], "num_inference_steps": 3, "progress": False}


@pytest.fixture
def run(tmp_path):
    """A run whose student is the built-in teacher, trained away from blue crosses."""
    folder = tmp_path / "run" / "student"
    write_tensors(folder / "student.safetensors", load_sampler("scenes").network.state_dict())
    grid = load_adapter("scenes").uniform_grid(2).times
    StudentFile(base="scenes", grid=grid, negative_prompt="a blue <cross>").write(folder)
    (tmp_path / "run" / "recipe.toml").write_text(
        '[model]\nteacher = "scenes"\nnegative_prompt = "a blue <cross>"\n[objective]\nname = "dp_dmd"\n'
        '[data]\nprompts = "scenes"\n[output]\nfolder = "run"\n'
    )
    return folder.parent


def test_a_teacher_is_drawn_away_from_it_and_the_manifest_says_so(tmp_path):
    plain = generate_folder("scenes", out=tmp_path / "plain", **DRAW)
    away = generate_folder("scenes", out=tmp_path / "away", negative_prompt="a red circle", **DRAW)
    assert "negative_prompt" not in plain.info and away.info["negative_prompt"] == "a red circle"
    pictures = [read_png(tmp_path / name / m.images[0].file) for name, m in (("plain", plain), ("away", away))]
    assert (pictures[0] - pictures[1]).abs().max() > 0.1
    # Guided away from its own prompt the difference is zero: the unguided teacher.
    unguided = generate_folder("scenes", out=tmp_path / "unguided", guidance_scale=1.0, **DRAW)
    third = read_png(tmp_path / "unguided" / unguided.images[0].file)
    assert (third - pictures[1]).abs().max() <= 2 / 255  # one level of a PNG
    with pytest.raises(ValueError, match="has images made with negative_prompt 'a red circle', not 'a cross'"):
        generate_folder("scenes", out=tmp_path / "away", negative_prompt="a cross", **DRAW)


def test_a_student_takes_none_and_hands_on_what_it_was_trained_with(run, tmp_path):
    draw = {"prompts": ["a red circle"], "seeds": [0], "progress": False}
    with pytest.raises(ValueError, match="--negative-prompt has no effect without guidance"):
        generate_folder(str(run), out=tmp_path / "refused", negative_prompt="fog", **draw)
    hybrid = {"teacher_first": True, "num_inference_steps": 3}
    manifest = generate_folder(str(run), out=tmp_path / "hybrid", **hybrid, **draw)
    assert manifest.info["negative_prompt"] == "a blue <cross>"
    assert "negative_prompt" not in generate_folder(str(run), out=tmp_path / "student", **draw).info
    assert _as_trained(str(run), Call()).negative_prompt == "a blue <cross>"
    assert _as_trained(str(run), Call(negative_prompt="")).negative_prompt == ""
    assert _as_trained("someone/student", Call()).negative_prompt is None


def test_the_card_names_it(run, tmp_path):
    card = (export_run(run, tmp_path / "export") / "README.md").read_text()
    assert "Negative prompt, which is in the weights: a blue &lt;cross&gt;" in card
    assert StudentFile.read(tmp_path / "export").negative_prompt == "a blue <cross>"
