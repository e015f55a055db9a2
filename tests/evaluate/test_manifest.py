import json

import pytest
import torch

from dpdmd.evaluate.manifest import ImageEntry, read_manifest, write_manifest
from dpdmd.store.png import write_png


def _image(folder, name):
    write_png(folder / name, torch.zeros(3, 4, 4))


def _manifest(folder, rows):
    (folder / "manifest.json").write_text(json.dumps({"images": rows}))


def test_what_is_written_is_read_back(tmp_path):
    for name in ("b.png", "a.png"):
        _image(tmp_path, name)
    images = [ImageEntry("a red circle", 7, "b.png"), ImageEntry("a red circle", 3, "a.png")]
    info = {"model": "m", "num_inference_steps": 4, "guidance_scale": 1.0, "grid": {"sigmas": [1.0, 0.0]}}
    write_manifest(tmp_path, images, info)
    manifest = read_manifest(tmp_path)
    assert manifest.images == images and manifest.info == info
    assert [entry.seed for entry in manifest.by_prompt()["a red circle"]] == [3, 7]
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["images"][0] == {"prompt": "a red circle", "seed": 7, "file": "b.png"}
    assert content["model"] == "m"


def test_a_folder_of_sub_folders_is_read_with_seeds_from_the_file_names(tmp_path):
    for name in ("a dog/10.png", "a dog/2.png", "a cat/x.png", "a cat/y.png", "a cat/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        _image(tmp_path, name) if name.endswith("png") else (tmp_path / name).write_text("no image")
    groups = read_manifest(tmp_path).by_prompt()
    assert {prompt: [(e.seed, e.file) for e in entries] for prompt, entries in groups.items()} == {
        "a cat": [(0, "a cat/x.png"), (1, "a cat/y.png")],
        "a dog": [(2, "a dog/2.png"), (10, "a dog/10.png")],
    }


def test_a_missing_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"neither manifest\.json nor a sub-folder"):
        read_manifest(tmp_path)
    _manifest(tmp_path, [])
    with pytest.raises(ValueError, match="lists no images"):
        read_manifest(tmp_path)


def test_broken_json_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="not valid JSON"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match=r"manifest\.json: it should be a JSON object, got \[\]"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("row", [7, {"prompt": "p", "seed": 0}, {"prompt": "p", "seed": "0", "file": "a.png"}])
def test_an_incomplete_row_is_refused(tmp_path, row):
    _image(tmp_path, "a.png")
    _manifest(tmp_path, [row])
    with pytest.raises(
        ValueError,
        match=r"manifest\.json: images\.0(\.file is missing|\.seed should be| should be)",
    ):
        read_manifest(tmp_path)


def test_a_listed_file_that_is_missing_is_named(tmp_path):
    _manifest(tmp_path, [{"prompt": "p", "seed": 0, "file": "gone.png"}])
    with pytest.raises(ValueError, match=r"missing: gone\.png"):
        read_manifest(tmp_path)


def test_files_outside_the_folder_are_refused(tmp_path):
    folder = tmp_path / "inside"
    folder.mkdir()
    _image(tmp_path, "x.png")
    for file in ("../x.png", str(tmp_path / "x.png"), "a/../../x.png"):
        _manifest(folder, [{"prompt": "p", "seed": 0, "file": file}])
        with pytest.raises(ValueError, match="not inside the folder"):
            read_manifest(folder)


def test_duplicates_are_refused(tmp_path):
    _image(tmp_path, "a.png")
    _image(tmp_path, "b.png")
    row = {"prompt": "p", "seed": 0, "file": "a.png"}
    _manifest(tmp_path, [row, row | {"seed": 1, "file": "./a.png"}])
    with pytest.raises(ValueError, match="listed twice"):
        read_manifest(tmp_path)
    _manifest(tmp_path, [row, row | {"file": "b.png"}])
    with pytest.raises(ValueError, match="'p' with seed 0 is listed twice"):
        read_manifest(tmp_path)


def test_write_refuses_what_read_would(tmp_path):
    with pytest.raises(ValueError, match="missing"):
        write_manifest(tmp_path, [ImageEntry("p", 0, "gone.png")])
    with pytest.raises(ValueError, match="must not have a key"):
        write_manifest(tmp_path, [], {"images": []})


def test_links_are_followed_and_two_names_of_one_file_are_two_images(tmp_path):
    _image(tmp_path, "x.png")
    folder = tmp_path / "inside"
    (folder / "a cat").mkdir(parents=True)
    for name in ("1.png", "2.png"):
        (folder / "a cat" / name).symlink_to(tmp_path / "x.png")
    assert [entry.seed for entry in read_manifest(folder).images] == [1, 2]
    (folder / "a dog").symlink_to(folder / "a cat")
    assert set(read_manifest(folder).by_prompt()) == {"a cat", "a dog"}


def test_hidden_names_are_passed_over_and_numbers_count_as_numbers(tmp_path):
    for name in ("img_10.png", "img_2.png", "._img_2.png"):
        (tmp_path / "a cat").mkdir(exist_ok=True)
        _image(tmp_path / "a cat", name)
    for hidden in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        (tmp_path / hidden).mkdir()
        _image(tmp_path / hidden, "0.png")
    found = [(entry.prompt, entry.seed, entry.file) for entry in read_manifest(tmp_path).images]
    assert found == [("a cat", 0, "a cat/img_2.png"), ("a cat", 1, "a cat/img_10.png")]
