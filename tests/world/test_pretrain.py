import dataclasses
import json

import pytest
from diffusers import DiffusionPipeline

from dpdmd.store.tensors import read_tensors
from dpdmd.world.captions import all_captions
from dpdmd.world.prompts import evaluation_prompts
from tools.pretrain import __main__ as command
from tools.pretrain import card, run
from tools.pretrain.run import pretrain
from tools.pretrain.text_encoders import NUM_TOKENS, factor_labels, new_tokenizer, tokenize


def test_every_caption_fits_the_tokenizer_without_unknown_words():
    tokenizer = new_tokenizer()
    longest = max(len(tokenizer(text).input_ids) for text in all_captions())
    assert longest <= NUM_TOKENS
    assert not (tokenize(tokenizer, all_captions()) == tokenizer.unk_token_id).any()


def test_labels_name_what_a_caption_names():
    labels = factor_labels(["a small blue cross", ""])
    assert {factor: values.tolist() for factor, values in labels.items()} == {
        "shape": [3, 4],
        "colour": [2, 6],
        "size": [0, 2],
        "background": [6, 6],
    }


def test_the_command_line_reads_its_stages(monkeypatch, capsys):
    called = {}
    monkeypatch.setattr(command, "pretrain", lambda **given: called.update(given) or given["out"])
    monkeypatch.setattr("sys.argv", ["pretrain", "--out", "t", "--stage", "text", "--seed", "2"])
    command.main()
    assert called == {"out": "t", "stage": "text", "seed": 2, "processes": 2, "scale": 1.0}
    monkeypatch.setattr("sys.argv", ["pretrain", "--out", "t", "--stage", "txt"])
    with pytest.raises(SystemExit):
        command.main()
    assert "autoencoder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_recorded_command_makes_stock_pipelines(tmp_path, monkeypatch):
    """A step or two of every stage, end to end, in two processes."""
    monkeypatch.setattr(card, "NUM_INFERENCE_STEPS", 2)
    monkeypatch.setattr(card, "evaluation_prompts", lambda: evaluation_prompts()[:3])
    out = pretrain(tmp_path, stage="all", scale=1e-4, processes=2)
    for name, teacher in run.TEACHERS.items():
        pipeline = DiffusionPipeline.from_pretrained(out / teacher.folder)
        pipeline.set_progress_bar_config(disable=True)
        image = pipeline("a red circle", height=32, width=32, num_inference_steps=2, output_type="np").images
        assert image.shape == (1, 32, 32, 3)
        text = (out / teacher.folder / "README.md").read_text()
        assert f"{name} {len(teacher.rounds)} steps" in text and type(pipeline).__name__ in text


@pytest.mark.slow
def test_rounds_continue_from_the_one_before_and_are_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(run.mp, "spawn", lambda worker, arguments, nprocs: worker(0, *arguments))  # in this process
    for rounds in ((10_000,), (10_000, 20_000)):
        teacher = dataclasses.replace(run.TEACHERS["transformer"], rounds=rounds)
        monkeypatch.setitem(run.TEACHERS, "transformer", teacher)
        for stage in ("autoencoder", "text", "transformer"):
            run.pretrain(tmp_path, stage=stage, scale=1e-4, processes=1)
    rows = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["stage"] == "transformer"] == [0, 1, 2]
    first, second = (read_tensors(tmp_path / "parts" / f"transformer-{number}.safetensors") for number in (1, 2))
    moved = max((second[name] - first[name]).abs().max().item() for name in first)
    assert 0 < moved < 0.05  # two small steps from there, not from new weights
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("transformer-*")}
    run.pretrain(tmp_path, stage="transformer", scale=1e-4)
    assert times == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("transformer-*")}


def test_the_card_sums_the_minutes_of_all_rounds(tmp_path):
    rows = [{"stage": "transformer", "step": i, "loss": 1.0, "seconds": s} for i, s in enumerate([0, 60, 120, 0, 60])]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert card.training(tmp_path / "log.jsonl", ("transformer",)) == "transformer 5 steps, loss 1.0000, 3 min"
