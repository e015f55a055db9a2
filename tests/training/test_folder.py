"""The run folder: what a killed run left in it, and links in it."""

import pytest
from trainers import train

from dpdmd.training.run.folder import RunFolder


def every_name(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_the_next_run_clears_what_a_killed_one_left_and_nothing_else(make_recipe, adapter, how):
    recipe = make_recipe(train={"num_updates": 2})
    folder = train(recipe, adapter, progress=False)
    before = every_name(folder)
    (folder / "students" / "best").mkdir(parents=True)
    left = [
        "students/best/.best.1a2b3c4d.tmp.json",
        ".metrics.1a2b3c4d.tmp.jsonl",
        ".recipe.1a2b3c4d.tmp.toml",
        "checkpoints/.step-000002.tmp/student.safetensors",
        "checkpoints/step-000002/.student.1a2b3c4d.tmp.safetensors",
        "student/.student.1a2b3c4d.tmp.json",
    ]
    others = ["notes.tmp", ".notes.tmp.txt", "samples/.0000-000000.1a2b3c4d.tmp.png"]
    for name in [*left, *others]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("half")
    train(make_recipe(train={"num_updates": 3}), adapter, progress=False, **{how: True})
    names = every_name(folder)
    assert not set(left) & set(names) and "checkpoints/.step-000002.tmp" not in names
    assert set(others) < set(names) and {name for name in before if "step" not in name} < set(names)


def test_replacing_a_run_takes_links_away_and_not_what_they_point_to(make_recipe, adapter, tmp_path):
    recipe = make_recipe(train={"num_updates": 2})
    folder, far = train(recipe, adapter, progress=False), tmp_path / "far"
    (folder / "checkpoints").rename(far)
    (folder / "checkpoints").symlink_to(far)
    kept = every_name(far)
    train(recipe, adapter, overwrite=True, progress=False)
    assert every_name(far) == kept and kept
    assert not (folder / "checkpoints").is_symlink() and every_name(folder / "checkpoints") == kept


def test_a_folder_of_checkpoints_may_be_a_link(make_recipe, adapter, tmp_path):
    recipe, far = make_recipe(train={"num_updates": 2}), tmp_path / "far"
    far.mkdir()
    folder = train(recipe, adapter, progress=False)
    (folder / "checkpoints").rename(far / "checkpoints")
    (folder / "checkpoints").symlink_to(far / "checkpoints")
    train(make_recipe(train={"num_updates": 3}), adapter, resume=True, progress=False)
    assert (folder / "checkpoints").is_symlink() and (far / "checkpoints" / "step-000003" / "state.json").is_file()


def test_a_place_that_can_be_no_folder_is_refused(tmp_path):
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "file").write_text("mine")
    for place in ("dangling", "file", "file/run"):
        with pytest.raises(ValueError, match=rf"output\.folder .*{place} must be a folder"):
            RunFolder(tmp_path / place).refuse_if_unusable({}, resume=False, overwrite=True)
