"""Negative prompts: what the teacher is guided away from, of all prompts or of each."""

from functools import partial

import pytest
import torch
from tiny_adapter import PictureAdapter, TinyAdapter
from trainers import new_trainer, train

from dpdmd.data.prompts import training_pairs, training_prompts
from dpdmd.models.base import encoded
from dpdmd.models.student_file import StudentFile
from dpdmd.recipe.resolve import resolve
from dpdmd.training.data import EncodedPrompts, prompts_digest
from dpdmd.training.parts import sample_teacher

ROWS = """\
{"prompt": "a cat", "negative_prompt": "a dog"}
{"prompt": "a house"}
{"prompt": "a tree", "negative_prompt": ""}
{"prompt": "a boat", "negative_prompt": " a car "}
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(ROWS)
    return str(path)


def test_a_table_gives_each_prompt_its_own(table):
    assert training_pairs(table, negative_column="negative_prompt") == [
        ("a cat", "a dog"), ("a house", None), ("a tree", ""), ("a boat", "a car"),
    ]  # fmt: skip
    assert training_prompts(table) == ["a cat", "a house", "a tree", "a boat"]


def test_weighted_sources_keep_prompts_and_negative_prompts_together(table, tmp_path):
    (tmp_path / "lines.txt").write_text("a star\na moon\n")
    pairs = training_pairs([(table, 3), (str(tmp_path / "lines.txt"), 1)], negative_column="negative_prompt")
    assert {pair[0]: pair[1] for pair in pairs} | dict(pairs) == {
        "a cat": "a dog", "a house": None, "a tree": "", "a boat": "a car", "a star": None, "a moon": None,
    }  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), [
    ('{"prompt": "a cat"}', "no prompt of .* has a negative prompt in a column 'bad'"),
    ('{"prompt": "a cat", "bad": 3}', r"prompts.jsonl.*1.* no text under 'bad' \(data.negative_column\), but int"),
])  # fmt: skip
def test_a_column_without_texts_is_refused(rows, message, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(rows)
    with pytest.raises(ValueError, match=message):
        training_pairs(str(path), negative_column="bad")


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
def test_the_teacher_is_guided_away_from_each_prompts_own(make_recipe, table, tmp_path, cache):
    PictureAdapter.save(tmp_path / "model")
    adapter = TinyAdapter(str(tmp_path / "model"))
    data = {"prompts": table, "negative_column": "negative_prompt"}
    data |= {"cache": str(tmp_path / "cache")} if cache else {"cache": "none"}
    trainer = new_trainer(make_recipe(model={"negative_prompt": "fog"}, data=data), adapter)
    expected = {"a cat": "not a dog", "a house": "not fog", "a tree": "", "a boat": "not a car"}
    batch = trainer.batches.micro_batch("student", 0, 0)
    away = adapter.encode([expected[prompt] for prompt in batch.prompts]).tensors["embeds"]
    assert torch.equal(batch.uncond.tensors["embeds"], away)
    # Guidance uses them: u + s (c - u) of each sample, here over all steps of the teacher.
    with torch.no_grad():
        x0 = sample_teacher(trainer.parts.teacher, batch)
        z, grid = batch.noise, trainer.parts.teacher.grid
        for i in range(grid.num_steps):
            t = grid.time(i, z)
            c, u = (trainer.denoisers.teacher(z, t, cond).velocity for cond in (batch.cond, batch.uncond))
            z = z + (grid.times[i + 1] - grid.times[i]) * (u + trainer.parts.teacher.guidance.scale * (c - u))
    torch.testing.assert_close(x0, z, atol=1e-4, rtol=1e-4)


def test_one_for_all_is_recorded_and_shown_by_validation(make_recipe, adapter):
    sections = {"train": {"num_updates": 1}, "validation": {"every": 1, "prompts": ["a sea", "a hill"]}}
    plain = train(make_recipe("plain", **sections), adapter)
    guided = train(make_recipe("away", model={"negative_prompt": "fog"}, **sections), adapter)
    assert StudentFile.read(plain / "student").negative_prompt == ""
    assert StudentFile.read(guided / "student").negative_prompt == "fog"
    kept = [next((run / "validation").glob("teacher-*.safetensors")) for run in (plain, guided)]
    assert kept[0].name != kept[1].name and kept[0].read_bytes() != kept[1].read_bytes()


def test_a_run_without_them_has_the_digest_of_before(adapter):
    prompts = ["a cat", "a dog"]
    encode = partial(encoded, adapter)
    assert EncodedPrompts(prompts, encode).digest == prompts_digest(prompts) == prompts_digest(prompts, ["", ""])
    assert EncodedPrompts(prompts, encode, ["", "fog"]).digest != prompts_digest(prompts)
    assert prompts_digest(prompts, ["", "fog"]) != prompts_digest(prompts, ["fog", ""])


@pytest.mark.parametrize(("scale", "takes", "message"), [
    (1.0, True, "model.negative_prompt has no effect on a teacher that is not guided"),
    (2.0, False, "model.negative_prompt: TinyPipeline takes no negative prompt"),
])  # fmt: skip
def test_what_would_have_no_effect_is_refused(make_recipe, monkeypatch, scale, takes, message):
    monkeypatch.setattr(TinyAdapter, "takes_negative_prompt", takes)
    with pytest.raises(ValueError, match=message):
        resolve(make_recipe(model={"negative_prompt": "fog", "guidance_scale": scale}), TinyAdapter())
