"""benchmarks.gpu at tiny size on the CPU: every part runs and writes what its table needs."""

import json
import sys

import pytest
from torch import nn

from benchmarks import gpu
from dpdmd.recipe.optimisers import missing_optimiser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


def test_every_part_runs_and_writes_its_file(work, monkeypatch, capsys):
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)  # it takes a minute on a CPU
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--work", str(work), "--out", str(work / "out")])
    gpu.main()
    found = {name: json.loads((work / "out" / f"{name}.json").read_text())["result"] for name in gpu.PARTS}
    assert found["cycle"].keys() == {"reference", "recipe", "recipe, one backbone"}
    assert all(row["samples_per_second"] > 0 for row in found["cycle"].values())
    for name, row in found["memory"].items():
        if name == "copies, 8-bit moments" and missing_optimiser("adamw_8bit"):
            assert "not installed" in row["not measured"]
        else:  # the text encoders and the driver's context are in neither number
            assert 0.5 < row["ratio"] < 2, (name, row)
    assert found["recomputing"]["True"]["bytes"] <= found["recomputing"]["False"]["bytes"]
    assert found["compile"]["eager"].keys() == found["compile"]["compiled"].keys()
    assert found["sampling"]["teacher"]["calls"] == 15 * found["sampling"]["student"]["calls"]
    assert capsys.readouterr().out.count("written to") == len(gpu.PARTS)


def test_without_a_gpu_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "cycle"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "there is no GPU here: add --tiny" in capsys.readouterr().err
