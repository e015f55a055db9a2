"""Prompts and captions in tables: what comes out equals what went in, whatever the form."""

import csv
import io
import json

import pytest
from PIL import Image

from dpdmd.data.images import captioned_images
from dpdmd.data.prompts import read_prompts

PROMPTS = ["a red circle", 'two "quoted", with a comma', "tab\tinside", "ünï", "=1+1"]


def as_table(separator: str, heading: str = "prompt") -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator)
    writer.writerows([["seed", heading], *([i, prompt] for i, prompt in enumerate(PROMPTS))])
    return out.getvalue()


def rows() -> list[dict[str, object]]:
    return [{"prompt": prompt, "seed": i} for i, prompt in enumerate(PROMPTS)]


FORMS = {
    "a.csv": as_table(","),
    "b.CSV": as_table(";"),
    "c.tsv": as_table("\t", "Prompt"),
    "d.jsonl": "\n".join(map(json.dumps, rows())),
    "e.NDJSON": "\n".join(map(json.dumps, rows())) + "\n\n",
    "f.json": json.dumps(rows(), indent=1),
    "g.json": json.dumps(PROMPTS, ensure_ascii=False),
    "h.txt": "# heading\n" + "\n\n".join(PROMPTS),
}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_prompts(name, mark, tmp_path):
    (tmp_path / name).write_text(mark + FORMS[name], encoding="utf-8", newline="")
    assert read_prompts(tmp_path / name) == PROMPTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,seed\nx,1\n", r"a\.csv, line 2 has no text under 'prompt' .*it has text, seed"),
        ("a.csv", "prompt,seed\nx,1,2\n", r"line 2 has not as many cells as the heading"),
        ("a.csv", "prompt,seed\nx\n", r"line 2 has not as many cells as the heading"),
        ("a.csv", 'prompt\n"x\n', r"a\.csv, line \d cannot be read as a table"),
        ("a.csv", "prompt\n", r"a\.csv has no prompts"),
        ("a.json", '{"prompt": "x"}', r"must be a JSON list of texts or objects, got dict"),
        ("a.json", "[1]", r"a\.json, entry 1 has no text"),
        ("a.json", "[" * 100_000, r"a\.json is not valid JSON"),
        ("a.yaml", "- x\n", r"a\.yaml: prompts are not read from \.yaml; write one per line"),
        ("a.jsonl", '{"prompt": "a \\ud83d"}\n', r"a\.jsonl, line 1: .*half a character"),
        ("a.json", '["x", "a \\udc00"]', r"a\.json, entry 2: .*half a character"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused_with_file_and_line(name, content, message, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("form", ["metadata.csv", "metadata.jsonl"])
def test_captions_of_sub_folders_are_found_from_their_own_table_and_from_one_above(form, tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for place in ("b.png", "sub/img_10.png", "sub/img_2.png", "sub/deep/c.png", ".hidden/d.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / place)

    def table(folder, captions):
        if form.endswith("csv"):
            text = "file_name,prompt\n" + "".join(f'{name},"{prompt}"\n' for name, prompt in captions.items())
        else:
            text = "\n".join(json.dumps({"file_name": name, "prompt": prompt}) for name, prompt in captions.items())
        (folder / form).write_text("\ufeff" + text, encoding="utf-8")

    table(tmp_path, {"b.png": "one, two", "sub/img_10.png": "ten"})
    table(tmp_path / "sub", {"img_2.png": "two", "deep/c.png": "deep"})
    found = [(str(path.relative_to(tmp_path)), prompt) for path, prompt in captioned_images(tmp_path)]
    assert found == [
        ("b.png", "one, two"),
        ("sub/img_2.png", "two"),
        ("sub/img_10.png", "ten"),
        ("sub/deep/c.png", "deep"),
    ]


def test_a_caption_file_with_a_byte_order_mark(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("\ufeffa cat\n", encoding="utf-8")
    assert captioned_images(tmp_path) == [(tmp_path / "a.png", "a cat")]
