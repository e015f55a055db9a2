"""The table of metrics: complete, unambiguous, and the same in code and documents."""

import re

import pytest

from dpdmd.evaluate.metrics import BY_KEY, GROUPS, HEADLINE, METRICS, SCORES, metric_of
from dpdmd.evaluate.words import written
from dpdmd.vision.quality.load import QUALITY
from tools.metrics_page import PAGES, fill


def test_every_metric_has_its_own_key_heading_and_meaning():
    for field in ("key", "heading", "meaning"):
        values = [getattr(metric, field) for metric in METRICS]
        assert all(values) and len(set(values)) == len(values)


def test_every_metric_is_in_one_group_and_can_be_written():
    assert [metric for group in GROUPS.values() for metric in group] == list(METRICS)
    for metric in METRICS:
        assert written(0.5, metric.style)


def test_selections_and_quality_scores_are_in_the_table():
    assert set(HEADLINE) | set(QUALITY) <= BY_KEY.keys() and set(SCORES) < set(METRICS)


def test_an_unknown_metric_is_called_by_its_key():
    metric = metric_of("new_score")
    assert (metric.heading, metric.explanation) == ("new score", "")


def test_metrics_of_the_teachers_images_are_labelled():
    metric = metric_of("reference_clip_score")
    assert (metric.key, metric.heading) == ("reference_clip_score", "CLIPScore, the teacher's")
    assert metric.style == metric_of("clip_score").style and not metric.explanation


def test_an_explanation_ends_with_which_way_is_better():
    assert metric_of("validity").explanation.endswith("of the built-in world. Higher is better.")
    assert metric_of("frechet").explanation.endswith("Lower is better.")
    assert metric_of("diversity_share").explanation == metric_of("diversity_share").meaning


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_documents_show_the_table(page):
    """`python -m tools.metrics_page` writes them."""
    text = page.read_text(encoding="utf-8")
    assert "<!-- metrics " in text and fill(text) == text


def test_every_group_is_in_the_documents():
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"<!-- metrics (.+?) -->", texts)) == set(GROUPS)
