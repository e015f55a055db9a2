"""Prompt lists: files, datasets, the built-in world's, and what is wrong with them."""

import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from dpdmd.data.generic import generic_prompts
from dpdmd.data.prompts import evaluation_prompts_of, lint_prompts, read_prompts, training_prompts
from dpdmd.world.prompts import evaluation_prompts


def test_prompt_file_leaves_out_comments_and_blank_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# head\r\n\r\n  ein großes Kreuz \r\na # inside\r\nline\u2028separator\n".encode())
    assert read_prompts(path) == ["ein großes Kreuz", "a # inside", "line\u2028separator"]
    assert training_prompts(str(path)) == read_prompts(path)


def test_a_prompt_file_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "prompts.txt"
    with pytest.raises(ValueError, match=r"cannot read .*prompts\.txt"):
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


def test_generic_prompts_are_distinct_short_and_long_and_always_the_same():
    prompts = training_prompts("generic")
    assert len(prompts) == len(set(prompts)) == 4096 and prompts == generic_prompts()
    assert prompts[:3] == [
        "a grandmother knitting on a train platform",
        "a father carrying his daughter in a field of wheat, neon light, rule of thirds",
        "a pastel drawing of an elephant and her calf in a meadow full of poppies, shallow depth of field, visible "
        "brush strokes",
    ]
    lengths = [len(prompt.split()) for prompt in prompts]
    assert sum(n <= 6 for n in lengths) > 400 and sum(n >= 20 for n in lengths) > 400
    assert not any("{" in prompt or "  " in prompt for prompt in prompts)


def test_several_sources_have_the_shares_of_their_weights_and_lose_no_prompt(tmp_path):
    sizes = {"few.txt": 3, "many.txt": 40}
    for name, size in sizes.items():
        (tmp_path / name).write_text("\n".join(f"{name} {i}" for i in range(size)))
    few, many = (str(tmp_path / name) for name in sizes)
    prompts = training_prompts([(few, 3.0), (many, 1.0)])
    counts = Counter(prompts)
    assert len(counts) == 43 and len(prompts) == 160  # 40 of many.txt are one share of four
    assert sum(count for prompt, count in counts.items() if prompt.startswith("few")) == 120
    assert all(counts[f"few.txt {i}"] == 40 and counts[f"many.txt {i}"] == 1 for i in range(3))
    assert training_prompts([(many, 0.5)]) == training_prompts(many)
    equal = Counter(prompt.split()[0] for prompt in training_prompts([(few, 1.0), (many, 1.0)]))
    assert equal == {"few.txt": 40, "many.txt": 40}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'["a cat", "a dog"]', "has JSON in it and would be read line by line; call it NAME.json"),
        (b'\n[\n "a cat",\n "a dog"\n]\n', "call it NAME.json"),
        (b'{"prompt": "a cat"}\n{"prompt": "a dog"}\n', "call it NAME.jsonl"),
        ("a cat\na dog\n".encode("utf-16-le"), "line 1 has a zero byte in it, so this is no UTF-8 text"),
        ("a cat\n".encode("utf-16"), "is not UTF-8 text"),
        ("a café\n".encode("latin-1"), "is not UTF-8 text"),
    ],
)
def test_a_text_file_that_holds_something_else_is_refused(content, message, tmp_path):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / "p.txt")


def test_every_kind_of_line_end_ends_a_prompt_and_brackets_may_begin_one(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"a cat\r\n\r\na dog\r[a] bird\n")
    assert read_prompts(tmp_path / "p.txt") == ["a cat", "a dog", "[a] bird"]
