import base64
import csv
import hashlib
import io
import json
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from dpdmd.evaluate.manifest import ImageEntry, write_manifest
from dpdmd.report import build
from dpdmd.report.build import build_report, report_from_runs
from dpdmd.report.galleries import choose_prompts, prompt_galleries, write_overview_png
from dpdmd.report.runs import ArmReport, read_arm, read_runs
from dpdmd.report.terms import DOCS, TERMS
from dpdmd.store.files import write_json
from dpdmd.store.png import write_png

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
            drawn = tmp_path / "demo" / name / "validation"
            for step in (5, 10):
                write_png(drawn / f"step-{step:06d}.png", torch.full((3, 8, 16), step / 10))
            write_rows(drawn / "scores.jsonl", [{"step": 5, "validation/diversity_share": 0.61, "alarms": {}}])
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


def test_the_report_holds_everything_and_loads_nothing_from_outside(demo):
    page_file = report_from_runs([demo], demo / "report.html", provenance={"commit": "abc123"})
    assert list(demo.glob("*report*")) == [page_file]
    text = page_file.read_text()
    page = _Page(text)
    inside = ("data:image/png;base64,", "data:text/csv;charset=utf-8;base64,", "#", DOCS)
    assert all(address == "data:," or address.startswith(inside) for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import", text)
    # The trade-off once for wide and once for narrow screens, the lines of prompts, a loss, a health.
    assert page.tags.count("svg") == 5
    # Of three arms: three prompts in the picture and in the galleries; two pictures of validation for two students.
    assert page.tags.count("figure") == 9 + 9 + 4
    assert sum(address.startswith("data:image") for address in page.addresses) == 3 * 3 * 6 + 81 + 4
    assert "DP-DMD is more diverse than DMD" in page.text and "abc123" in page.text
    assert "after 5 updates diversity 61 %" in " ".join(page.text.replace("\xa0", " ").split())
    assert set(downloads(text)) == {
        "trade_off.csv",
        "spread.csv",
        "losses.csv",
        "health.csv",
        "prompts.csv",
        "numbers.csv",
    }


def test_every_term_is_linked_once_and_to_a_page_and_heading_of_the_docs(demo):
    text = report_from_runs([demo], demo / "report.html").read_text()
    links = re.findall(r'class="term" href="([^"]+)"[^>]*>([^<]+)<', text)
    assert {"DMD", "DP-DMD", "teacher\u0027s diversity".replace("\u0027", "&#39;")} <= {term for _, term in links}
    assert len({term for _, term in links}) == len(links)
    docs = Path(__file__).parents[2] / "docs"
    for place, _ in TERMS.values():
        page, _, anchor = place.partition("#")
        headings = re.findall(r"^#+ (.+)$", (docs / page).read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, place


def test_a_hostile_prompt_stays_text(demo):
    arms = read_runs([demo])
    arms[HOSTILE] = ArmReport(
        HOSTILE, metrics={"diversity_share": 0.5, "named_accuracy": 0.5, "skipped": {"x": HOSTILE}}
    )
    text = build_report(demo / "r.html", title=HOSTILE, arms=arms, provenance={HOSTILE: HOSTILE}).read_text()
    assert HOSTILE not in text
    page = _Page(text)
    assert page.tags.count("script") == 2 and HOSTILE in page.text


def test_the_svg_has_ids_of_its_own_and_follows_the_page_colour(demo):
    text = report_from_runs([demo], demo / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text):
        assert (target[0] or target[1]) in ids
    assert "currentColor" in text and "#24292e" not in text


def test_the_same_input_gives_the_same_page(demo):
    first = report_from_runs([demo], demo / "a" / "report.html").read_bytes()
    assert report_from_runs([demo], demo / "b" / "report.html").read_bytes() == first


def test_prompts_are_chosen_by_what_an_arm_lost(demo):
    arms = read_runs([demo])
    chosen = choose_prompts(arms, arms["dmd"], num_collapsed=1, num_kept=1)
    assert list(chosen) == [HOSTILE, "a red circle"]
    assert "keeps least: 20 %" in chosen[HOSTILE] and "keeps most: 70 %" in chosen["a red circle"]


@pytest.mark.parametrize("missing", ["samples", "metrics.json", "metrics.jsonl"])
def test_missing_parts_are_left_out(demo, missing):
    import shutil

    (demo / "metrics.json").unlink()
    for arm in ("teacher", "dmd", "dp_dmd"):
        path = demo / arm / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    page = _Page(report_from_runs([demo], demo / "report.html").read_text())
    assert page.tags.count("figure") == 4 + (18 if missing != "samples" else 0)
    if missing == "metrics.json":
        assert "DP-DMD has not been scored yet" in page.text or "In its last validation" in page.text


def test_an_unknown_metric_is_shown_under_its_key(demo):
    further = {"facebook/<dino>": {"diversity_share": 0.61, "per_prompt": [{"prompt": "a cross", "diversity": 0.123}]}}
    arms = {"dmd": {"new_score": 0.12345, "vendi": 3.2, "further_features": further, "no number": float("nan")}}
    write_any_json(demo / "metrics.json", {"arms": arms})
    page = _Page(report_from_runs([demo], demo / "report.html").read_text())
    assert "new score" in page.text and "0.123" in page.text and "Vendi score" in page.text
    assert "Measured with facebook/<dino>" in page.text and "61 %" in page.text and "no number" not in page.text
    rows = read_csv(demo / "report.html", "numbers.csv")
    own = {row["metric"]: row["value"] for row in rows if not row["network"]}
    assert own == {"new_score": "0.12345", "vendi": "3.2", "num_inference_steps": "4"}
    assert [row["value"] for row in rows if row["network"] == "facebook/<dino>"] == ["0.61"]
    rows = read_csv(demo / "report.html", "prompts.csv")
    assert [r["facebook/<dino>: diversity"] for r in rows if r["prompt"] == "a cross" and r["arm"] == "DMD"] == [
        "0.123"
    ]


def test_the_teachers_scores_are_shown_where_it_is_no_arm_and_failures_are_reported(demo):
    scores = {"clip_score": 30.25, "reference_clip_score": 31.75, "clip_score_failures": 3}
    write_any_json(demo / "metrics.json", {"arms": {"dmd": scores}})
    text = _Page(report_from_runs([demo], demo / "report.html").read_text()).text
    assert "31.8" not in text and "DMD: 3 images have no CLIPScore" in text
    write_any_json(demo / "dmd" / "metrics.json", scores)
    text = _Page(report_from_runs([demo / "dmd"], demo / "report.html").read_text()).text
    assert "CLIPScore, the teacher's" in text and "31.8" in text


def test_the_tables_in_the_page_hold_all_numbers_unrounded(demo):
    report_from_runs([demo], demo / "report.html")
    rows = read_csv(demo / "report.html", "numbers.csv")
    share = next(row for row in rows if row["arm"] == "DMD" and row["metric"] == "diversity_share")
    assert [float(share[key]) for key in ("value", "low", "high")] == [sum(SHARES["dmd"]) / 3, 0.5, 1.0]
    rows = read_csv(demo / "report.html", "prompts.csv")
    found = {(row["prompt"], row["arm"]): float(row["diversity_share"]) for row in rows}
    expected = {("DMD", p): s for p, s in zip(PROMPTS, SHARES["dmd"], strict=True)}
    assert {(arm, prompt): found[prompt, arm] for arm, prompt in expected} == pytest.approx(expected)
    rows = read_csv(demo / "report.html", "losses.csv")
    assert [float(row["loss/dmd"]) for row in rows if row["arm"] == "DMD"] == [1 / (i + 1) for i in range(20)]


def test_half_of_a_surrogate_pair_does_not_keep_the_report_from_being_written(demo):
    write_any_json(demo / "dmd" / "metrics.json", {"per_prompt": [{"prompt": "\ud800", "diversity": 0.5}]})
    text = report_from_runs([demo], demo / "report.html").read_text()
    assert "\\ud800" in text and "\\ud800" in downloads(text)["prompts.csv"]


def test_the_policy_names_the_one_script_and_lets_nothing_be_loaded(demo):
    text = report_from_runs([demo], demo / "report.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'" and directives["img-src"] == "data:"
    assert directives["script-src"] == f"'sha256-{digest}'"


def test_images_stay_below_their_limit_and_the_page_lists_what_is_left_out(demo, monkeypatch):
    arms = read_runs([demo])
    everything = prompt_galleries(arms)
    assert [row.prompt for row in everything] == [HOSTILE, "a cross", "a red circle"]
    weight = sum(len(p.data) for g in everything[0].galleries for p in g.images)
    # The most and the least collapsed come first, whatever is left out between them.
    assert [row.prompt for row in prompt_galleries(arms, most_bytes=int(2.5 * weight))] == [HOSTILE, "a cross"]
    assert [row.prompt for row in prompt_galleries(arms, most_bytes=1)] == [HOSTILE]
    monkeypatch.setattr(build, "prompt_galleries", partial(prompt_galleries, most_bytes=1))
    assert "This page has images of 1 of 3 prompts" in report_from_runs([demo], demo / "report.html").read_text()


def test_large_images_are_shrunk_and_small_ones_kept_exactly(tmp_path):
    from PIL import Image

    for edge in (128, 1000):
        noise = torch.rand(3, edge, edge // 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
        write_png(tmp_path / "samples" / "0.png", noise)
        write_manifest(tmp_path / "samples", [ImageEntry("a", 0, "0.png")])
        (row,) = prompt_galleries({"a": read_arm(tmp_path, "a")})
        kind, _, data = row.galleries[0].images[0].data.partition(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(data))) as shown, Image.open(tmp_path / "samples/0.png") as image:
            if edge == 128:
                assert kind == "data:image/png" and shown.tobytes() == image.convert("RGB").tobytes()
            else:
                assert kind == "data:image/webp" and shown.size == (160, 320)


def test_no_arms_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one arm"):
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
    with pytest.raises(ValueError, match="every arm has images"):
        write_overview_png(tmp_path / "o.png", read_runs([demo]), prompts=["a prompt that nobody drew"])


def write_any_json(path, value):
    path.write_text(json.dumps(value))


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def downloads(text):
    """{name: content} of the CSV files in a page."""
    found = re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8;base64,([^"]*)"', text)
    return {name: base64.b64decode(content).decode() for name, content in found}


def read_csv(page, name):
    return list(csv.DictReader(io.StringIO(downloads(page.read_text())[name])))
