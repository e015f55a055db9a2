"""benchmarks.memory at tiny size, what it measures with, and the page that it fills."""

import torch

from benchmarks.memory import COMBINATIONS, FAMILIES, PAGE, RESULTS, measure, table, write_teacher
from benchmarks.pareto_page import fill
from benchmarks.sharding import PeakMemory
from dpdmd.store.files import read_json

TINY = {
    "num_layers": 2,
    "num_attention_heads": 1,
    "caption_projection_dim": 64,
    "pos_embed_max_size": 16,
    "dual_attention_layers": [0],
}
MIB = 2**20


def test_a_peak_is_what_was_there_at_a_time_though_it_is_gone_at_the_end():
    with PeakMemory() as memory:
        for _ in range(2):
            tensor = torch.ones(64 * MIB // 4)
            for _ in range(20):
                tensor.add_(1)  # long enough to be seen
            del tensor
    assert 60 * MIB < memory.added < 80 * MIB


def test_an_update_is_measured_and_planned(tmp_path):
    write_teacher("sd3", tmp_path / "teacher", TINY)
    row = measure(COMBINATIONS["adapters on fp8"], tmp_path / "teacher", tmp_path)
    assert 0 < row["settled"] < row["measured"] and 0 < row["stays"] < row["planned"]
    assert row["ratio"] == row["planned"] / row["measured"]
    (line,) = [line for line in table({"adapters on fp8": row}).splitlines() if "fp8" in line]
    assert line.endswith(f"| {row['ratio']:.2f} |")


def test_combinations_have_a_family_and_at_least_twelve_were_measured_as_the_page_shows():
    assert {combination.family for combination in COMBINATIONS.values()} == set(FAMILIES)
    rows = read_json(RESULTS)["rows"]
    assert rows.keys() <= COMBINATIONS.keys() and sum("measured" in row for row in rows.values()) >= 12
    page = PAGE.read_text(encoding="utf-8")
    assert "<!-- memory rows -->" in page and fill(page, {"rows": table(rows)}, marker="memory") == page
