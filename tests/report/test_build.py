import json
import re
import sys
from html.parser import HTMLParser

import pytest
import torch

from dpdmd.evaluate.manifest import ImageEntry, write_manifest
from dpdmd.files import write_json, write_png
from dpdmd.report.build import build_report, report_from_runs
from dpdmd.report.galleries import choose_prompts, write_overview_png
from dpdmd.report.runs import ArmReport, read_runs

HOSTILE = "<script>alert(1)</script>"
PROMPTS = ["a red circle", HOSTILE, "a cross"]
SHARES = {"dmd": (0.7, 0.2, 0.5), "dp_dmd": (0.9, 0.8, 0.9)}


@pytest.fixture
def demo(tmp_path):
    arms = {}
    for name in ("teacher", "dmd", "dp_dmd"):
        folder, entries = tmp_path / "demo" / name / "samples", []
        for i, prompt in enumerate(PROMPTS):
            for seed in range(9):
                file = f"{i}-{seed}.png"
                write_png(folder / file, torch.full((3, 8, 8), seed / 9))
                entries.append(ImageEntry(prompt, seed, file))
        write_manifest(folder, entries, {"model": HOSTILE, "num_inference_steps": 4})
        shares = SHARES.get(name, (1.0, 1.0, 1.0))
        rows = [{"prompt": p, "diversity": 0.4 * s, "reference_diversity": 0.4, "named_accuracy": 0.9}
                for p, s in zip(PROMPTS, shares, strict=True)]  # fmt: skip
        arms[name] = {"diversity": 0.4 * sum(shares) / 3, "diversity_share": sum(shares) / 3, "named_accuracy": 0.9,
                      "seconds": 12.0, "peak_memory_bytes": 2**30,
                      "intervals": {"diversity_share": [0.5, 1.0]}}  # fmt: skip
        write_json(tmp_path / "demo" / name / "metrics.json", {"per_prompt": rows})
        if name != "teacher":
            log = [{"step": i, "loss/dmd": 1 / (i + 1), "health/cosine": 0.9, "note": HOSTILE} for i in range(20)]
            text = "".join(json.dumps(row) + "\n" for row in log)
            (tmp_path / "demo" / name / "metrics.jsonl").write_text(text)
    write_json(tmp_path / "demo" / "metrics.json", {"arms": arms})
    return tmp_path / "demo"


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.scripts, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data", "srcset") and v]

    def handle_data(self, data):
        self.text += data
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)


def test_the_report_holds_everything_and_refers_to_nothing_outside(demo):
    pytest.importorskip("matplotlib")
    page_file = report_from_runs([demo], demo / "report.html", provenance={"commit": "abc123"})
    text = page_file.read_text()
    page = _Page(text)
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert not re.search(r"https?:|url\((?!#)|@import", text)
    assert page.tags.count("svg") == 3 and page.tags.count("figure") == 9
    assert sum(address.startswith("data:") for address in page.addresses) == 81
    assert "DP-DMD is more diverse than DMD" in page.text and "abc123" in page.text
    assert {path.name for path in (demo / "report_files").iterdir()} == {"trade_off.png", "losses.png", "health.png"}


def test_a_hostile_prompt_stays_text(demo):
    arms = read_runs([demo])
    arms[HOSTILE] = ArmReport(
        HOSTILE, metrics={"diversity_share": 0.5, "named_accuracy": 0.5, "skipped": {"x": HOSTILE}}
    )
    text = build_report(demo / "r.html", title=HOSTILE, arms=arms, provenance={HOSTILE: HOSTILE}).read_text()
    assert HOSTILE not in text
    page = _Page(text)
    assert page.tags.count("script") == 1 and HOSTILE in page.text


def test_the_svg_has_ids_of_its_own_and_follows_the_page_colour(demo):
    pytest.importorskip("matplotlib")
    text = report_from_runs([demo], demo / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text):
        assert (target[0] or target[1]) in ids
    assert "currentColor" in text and "#24292e" not in text


def test_the_same_input_gives_the_same_page(demo):
    first = report_from_runs([demo], demo / "a" / "report.html").read_bytes()
    assert report_from_runs([demo], demo / "b" / "report.html").read_bytes() == first


def test_prompts_are_chosen_by_what_dmd_lost(demo):
    chosen = choose_prompts(read_runs([demo]), num_collapsed=1, num_kept=1)
    assert list(chosen) == [HOSTILE, "a red circle"]
    assert "lost most: 20 % left" in chosen[HOSTILE] and "lost least: 70 % left" in chosen["a red circle"]


@pytest.mark.parametrize("missing", ["samples", "metrics.json", "metrics.jsonl"])
def test_missing_parts_are_left_out(demo, missing):
    import shutil

    (demo / "metrics.json").unlink()
    for arm in ("teacher", "dmd", "dp_dmd"):
        path = demo / arm / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    page = _Page(report_from_runs([demo], demo / "report.html").read_text())
    assert ("figure" in page.tags) == (missing != "samples")
    if missing == "metrics.json":
        assert "There are no scores yet" in page.text


def test_without_matplotlib_the_page_says_so(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = _Page(report_from_runs([demo], demo / "report.html").read_text())
    assert "svg" not in page.tags and "matplotlib is not installed" in page.text


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        build_report(tmp_path / "r.html", arms={})


def test_the_overview_shows_the_seeds_in_order(demo, tmp_path):
    from PIL import Image

    write_overview_png(tmp_path / "o.png", read_runs([demo]), prompts=["a cross"])
    with Image.open(tmp_path / "o.png") as image:
        pixels = image.convert("L")
    # The first block begins below the header; image of seed s is gray s / 9 of the way from mid-gray to white.
    top, left, pitch = 24 + 58 + 34, 24, 75
    shown = [pixels.getpixel((left + s % 3 * pitch + 30, top + s // 3 * pitch + 30)) for s in range(9)]
    # fp32 may round a half either way.
    assert shown == pytest.approx([(s / 9 + 1) * 127.5 for s in range(9)], abs=0.51)
    with pytest.raises(ValueError, match="images in every row"):
        write_overview_png(tmp_path / "o.png", read_runs([demo]), prompts=["a prompt that nobody drew"])
