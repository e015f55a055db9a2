"""What a resumed run is compared by: content, wherever it is."""

import shutil

import pytest

from dpdmd.models.identity import part_identities, start_identity, warn_of_another_base
from dpdmd.models.load import built_in_teacher, load_sampler
from dpdmd.models.student_file import StudentFile
from dpdmd.recipe.toml import load_recipe
from dpdmd.store.files import read_json, write_json
from dpdmd.store.tensors import read_tensors, write_tensors
from dpdmd.training.public import train
from dpdmd.training.run.identity import differences, not_compared

NOW = {
    "settings_hash": "a",
    "prompts_hash": "b",
    "images_hash": None,
    "backbone_hash": None,
    "teacher_parts": {"transformer": "c", "vae": "d"},
    "start": {"name": "runs/one", "sha256": "e"},
    "samples_per_update": 8,
}


def test_the_same_run_differs_in_nothing_and_an_older_checkpoint_only_in_what_it_has():
    assert differences(NOW, NOW) == []
    old = {"settings_hash": "a", "prompts_hash": "b", "samples_per_update": 8, "binding_hash": "x"}
    assert differences(old, NOW) == [] and not_compared(NOW) == []
    words = " and ".join(not_compared(old))
    assert "model.teacher" in words and "images" in words and "prompts" not in words and "settings" not in words


@pytest.mark.parametrize(
    ("key", "before", "words"),
    [
        ("settings_hash", "x", "settings of the recipe"),
        ("prompts_hash", "x", r"prompts \(data\.prompts\)"),
        ("images_hash", "x", r"images \(objective\.adversarial\.real\)"),
        ("backbone_hash", "x", r"objective\.perceptual\.backbone"),
        ("teacher_parts", {"transformer": "x", "vae": "d"}, r"teacher's transformer had .*model\.teacher"),
        ("teacher_parts", {"transformer": "c", "vae": "d", "text_encoder": "x"}, "teacher's text_encoder had"),
        ("teacher_parts", None, "teacher's transformer, vae had"),
        ("start", None, r"student\.start"),
        ("start", {"name": "runs/two", "sha256": "x"}, r"student\.start"),
        ("samples_per_update", 4, "4 samples per update, now 8.*train.accumulation"),
    ],
)
def test_each_difference_is_named_by_its_key(key, before, words):
    import re

    (found,) = differences(NOW | {key: before}, NOW)
    assert re.search(words, found)


@pytest.mark.parametrize("before", [{"name": "runs/one", "sha256": "x"}, {"name": "moved/one", "sha256": "e"}])
def test_a_start_that_has_gone_on_or_was_moved_is_the_same(before):
    assert differences(NOW | {"start": before}, NOW) == []


def test_parts_follow_their_files_and_not_their_place(tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(built_in_teacher(), teacher)
    before = part_identities(str(teacher))
    assert before == part_identities("scenes")
    (teacher / "vae" / ".DS_Store").write_text("of a file manager")
    (teacher / "README.md").write_text("new words")
    teacher = teacher.rename(tmp_path / "moved")
    assert part_identities(str(teacher)) == before
    config = teacher / "scheduler" / "scheduler_config.json"
    write_json(config, read_json(config) | {"shift": 1.0})
    after = part_identities(str(teacher))
    assert {name for name in before if before[name] != after[name]} == {"scheduler"} and before.keys() == after.keys()
    assert part_identities("tiny") == {}  # an adapter of somebody's own


def test_a_start_is_identified_by_its_weights(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"lora.down": built_tensor()})
    shutil.copyfile(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    one, same = (start_identity(str(tmp_path / f"{name}.safetensors"), is_lora=True) for name in "ab")
    write_tensors(tmp_path / "b.safetensors", {"lora.down": 2 * built_tensor()})
    assert one == same != start_identity(str(tmp_path / "b.safetensors"), is_lora=True)
    assert start_identity("scenes", is_lora=False) not in (one, start_identity("scenes_eps", is_lora=False))


def built_tensor():
    import torch

    return torch.arange(4.0)


def test_a_base_that_has_changed_is_said_by_its_parts(tmp_path, caplog):
    teacher = tmp_path / "teacher"
    shutil.copytree(built_in_teacher(), teacher)
    info = StudentFile(base=str(teacher), grid=(1.0, 0.0), base_parts=part_identities(str(teacher)))
    warn_of_another_base(tmp_path / "run", info)
    warn_of_another_base(tmp_path / "run", StudentFile(base=str(teacher), grid=(1.0, 0.0)))  # of an earlier version
    assert not caplog.messages
    (weights,) = (teacher / "vae").glob("*.safetensors")
    write_tensors(weights, {name: 2 * tensor for name, tensor in read_tensors(weights).items()}, {"format": "pt"})
    warn_of_another_base(tmp_path / "run", info)
    assert caplog.messages == [
        f"{tmp_path / 'run'}: its base {teacher} has changed since the student was trained (vae): "
        "its images may be others"
    ]


@pytest.mark.slow
def test_a_run_goes_on_with_a_moved_teacher_and_prompts_and_not_with_changed_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(built_in_teacher(), "teacher")
    (tmp_path / "prompts.txt").write_text("a red circle\none cross\n")

    def go_on(updates, *sets):
        always = ["train.batch_size=2", "train.fake_updates=1", "model.num_inference_steps=4", "output.folder=run"]
        own = [f"train.num_updates={updates}", *always, *sets]
        return train("scenes_dmd", overrides=own, resume=True, progress=False)

    here = ("model.teacher=teacher", "data.prompts=prompts.txt")
    there = ("model.teacher=new/teacher", "data.prompts=new/prompts.txt")
    go_on(1, *here)
    (tmp_path / "new").mkdir()
    for name in ("teacher", "prompts.txt"):
        (tmp_path / name).rename(tmp_path / "new" / name)
    with pytest.raises(ValueError, match=r"model\.teacher: there is no .*--set model\.teacher=PLACE\ndata\.prompts: "):
        train("run", resume=True, progress=False)
    with pytest.raises(ValueError, match=r'base of the student .*write its new place as "base" into run/student/stud'):
        load_sampler("run")
    go_on(2, *there)
    assert load_recipe("run").model.teacher == str(tmp_path / "new" / "teacher")
    (tmp_path / "new" / "prompts.txt").write_text("another\n")
    with pytest.raises(ValueError, match=r"other prompts \(data.prompts\)"):
        go_on(3, *there)
    (tmp_path / "new" / "prompts.txt").write_text("a red circle\none cross\n")
    config = tmp_path / "new" / "teacher" / "scheduler" / "scheduler_config.json"
    write_json(config, read_json(config) | {"shift": 1.0})
    with pytest.raises(ValueError, match=r"the teacher's scheduler had another content \(model\.teacher\)"):
        go_on(3, *there)
