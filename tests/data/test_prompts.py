"""Prompt lists: files, datasets, the built-in world's, and what is wrong with them."""

import sys
from types import SimpleNamespace

import pytest

from dpdmd.data.prompts import evaluation_prompts_of, lint_prompts, read_prompts, training_prompts
from dpdmd.world.prompts import evaluation_prompts


def test_prompt_file_leaves_out_comments_and_blank_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# head\r\n\r\n  ein großes Kreuz \r\na # inside\r\nline\u2028separator\n".encode())
    assert read_prompts(path) == ["ein großes Kreuz", "a # inside", "line\u2028separator"]
    assert training_prompts(str(path)) == read_prompts(path)


def test_a_prompt_file_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "prompts.txt"
    with pytest.raises(ValueError, match=r"cannot read the prompts .*prompts\.txt"):
        read_prompts(path)
    path.write_text("# only comments\n")
    with pytest.raises(ValueError, match="has no prompts"):
        read_prompts(path)
    path.write_bytes(b"\xff\xfea red circle")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_prompts(path)


def test_jsonl_prompts_are_the_texts_of_one_column(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a # is no comment", "id": 1}\n\n{"prompt": "  "}\n{"prompt": "\\u00e9"}\n')
    assert read_prompts(path) == ["a # is no comment", "\u00e9"]
    with pytest.raises(ValueError, match=r"line 1 has no text under 'caption' \(data\.column\); it has prompt, id"):
        training_prompts(str(path), "caption")
    path.write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(ValueError, match="line 2 is not valid JSON"):
        read_prompts(path)
    path.write_text('["a"]\n')
    with pytest.raises(ValueError, match=r"line 1 has no text under 'prompt'.*it has list"):
        read_prompts(path)


def test_a_dataset_gives_the_texts_of_one_column(monkeypatch):
    class Dataset(dict):
        column_names = ("text", "id")

    calls = []

    def load_dataset(name, split):
        calls.append((name, split))
        if name == "no/such":
            raise OSError("not found")
        return Dataset(text=["a", " ", "b"])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert training_prompts("datasets:some/name:test", "text") == ["a", "b"]
    assert training_prompts("datasets:some/name", "text") == ["a", "b"]
    assert calls == [("some/name", "test"), ("some/name", "train")]
    with pytest.raises(ValueError, match="no column 'prompt'; it has text, id"):
        training_prompts("datasets:some/name")
    with pytest.raises(ValueError, match="cannot load the dataset no/such"):
        training_prompts("datasets:no/such")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        training_prompts("datasets:some/name")


def test_repeated_and_cut_prompts_are_reported():
    def tokenizer(texts, **_):
        return SimpleNamespace(input_ids=[text.split() for text in texts])

    prompts = ["one two three", "one", "one", "one two three four"]
    assert lint_prompts(prompts[:2], {"text_encoder": (tokenizer, 3)}) == []
    repeated, cut = lint_prompts(prompts, {"text_encoder": (tokenizer, 2)})
    assert repeated.startswith("1 of 4 prompts repeat")
    assert cut.startswith("2 of 3 different prompts are longer than the 2 tokens that text_encoder reads")
    assert "The longest has 4, the first is 'one two three'" in cut


def test_prompts_are_asked_for_where_there_are_none():
    assert evaluation_prompts_of("scenes") == evaluation_prompts()
    with pytest.raises(ValueError, match="give --prompts FILE"):
        evaluation_prompts_of("some/model")
