import pytest

from dpdmd.method.randomness import generator
from dpdmd.world.captions import NAMEABLE_FACTORS, all_captions, caption, named_factors, num_wordings, sample_captions
from dpdmd.world.scenes import DISCRETE_FACTORS, sample_scenes


def test_caption_names_what_it_is_given():
    named = {"shape": "cross", "colour": "blue", "size": "small", "background": "white"}
    assert caption(named) == "a small blue cross on a white background"
    assert caption(named, 3) == "a small blue cross on white"
    assert caption(named, 7) == "the small blue cross in front of white"
    assert caption({"shape": "circle"}, 2) == "one circle"


def test_named_factors_is_the_inverse_of_caption():
    for text in all_captions():
        named = named_factors(text)
        assert text in {caption(named, wording) for wording in range(9)}


def test_all_captions_are_different_and_complete():
    texts = all_captions()
    # Shapes x (colours or none) x (sizes or none) x (3 wordings alone, 9 with one of the backgrounds).
    assert len(texts) == len(set(texts)) == 4 * 7 * 3 * (3 + 6 * 9)


def test_wordings_count_the_different_captions():
    for named in ({"shape": "square"}, {"shape": "square", "background": "pink"}):
        assert len({caption(named, wording) for wording in range(9)}) == num_wordings(named)


def test_no_value_belongs_to_two_nameable_factors():
    values = [value for factor in NAMEABLE_FACTORS for value in DISCRETE_FACTORS[factor]]
    assert len(values) == len(set(values))


def test_unknown_words_case_and_punctuation_are_ignored():
    assert named_factors("A shiny RED circle, on navy.") == {
        "shape": "circle",
        "colour": "red",
        "background": "navy",
    }
    assert named_factors("nothing of the kind") == {}


def test_sampled_captions_are_true_and_name_factors_at_their_rates():
    scenes = sample_scenes(8000, generator(0, "captions_test"))
    texts = sample_captions(scenes, generator(1, "captions_test"))
    counts = dict.fromkeys(NAMEABLE_FACTORS, 0)
    for i, text in enumerate(texts):
        for factor, value in named_factors(text).items():
            assert value == DISCRETE_FACTORS[factor][int(scenes.discrete[factor][i])]
            counts[factor] += 1
    rates = [counts[factor] / 8000 for factor in NAMEABLE_FACTORS]
    # Four standard deviations of a share of 8000 are at most .022.
    assert rates == pytest.approx([1.0, 0.75, 0.4, 0.3], abs=0.022)


def test_sampled_captions_use_every_wording():
    scenes = sample_scenes(3000, generator(2, "captions_test"))
    texts = sample_captions(scenes, generator(3, "captions_test"))
    assert {text.split()[0] for text in texts} == {"a", "the", "one"}
    assert any(" in front of " in text for text in texts)
    assert any(text.endswith(" background") for text in texts)
