import json
import math

import pytest
import torch

from dpdmd.method.randomness import generator
from dpdmd.world.captions import caption, named_factors, sample_captions
from dpdmd.world.metrics import (
    effective_modes,
    named_accuracy,
    scene_metrics,
    spread,
    total_variation_by_condition,
)
from dpdmd.world.oracle import Reading, read_scenes
from dpdmd.world.scenes import (
    DISCRETE_FACTORS,
    Scenes,
    conditional_probability,
    joint_probability,
    render,
    sample_scenes,
)
from dpdmd.world.statistics import entropy, expected_entropy, total_variation, total_variation_floor

BACKGROUND_GIVEN_COLOUR = torch.tensor([0.46] + [0.108] * 5, dtype=torch.float64)
PROMPTS = [
    "a circle",
    "a red square",
    "the blue cross on white",
    "one small triangle",
    "a large green circle",
    "a cross on a navy background",
]


def as_reading(scenes, valid=None):
    """A perfect oracle's reading."""
    zeros = torch.zeros(len(scenes))
    return Reading(scenes, zeros, zeros, torch.ones(len(scenes), dtype=torch.bool) if valid is None else valid)


def exact_samples(prompts, per_prompt, seed=0):
    """Exact samples of the world given each prompt, by rejection."""
    pool = sample_scenes(200_000, generator(seed, "metrics_test"))
    texts, rows = [], []
    for i, prompt in enumerate(prompts):
        keep = torch.ones(len(pool), dtype=torch.bool)
        for factor, value in named_factors(prompt).items():
            keep &= pool.discrete[factor] == DISCRETE_FACTORS[factor].index(value)
        index = keep.nonzero().squeeze(1)
        order = torch.randperm(len(index), generator=generator(seed, "metrics_test_order", i))
        rows.append(index[order[:per_prompt]])
        texts += [prompt] * per_prompt
    return texts, pool[torch.cat(rows)]


def changed(scenes, rows, **values):
    discrete = {name: value.clone() for name, value in scenes.discrete.items()}
    for factor, value in values.items():
        discrete[factor][rows] = DISCRETE_FACTORS[factor].index(value)
    return Scenes(discrete, scenes.continuous)


def multinomial_counts(probability, num_samples, num_draws):
    draws = torch.multinomial(
        probability.float().expand(num_draws, -1), num_samples, True, generator=generator(num_samples, "metrics_test")
    )
    return torch.nn.functional.one_hot(draws, len(probability)).sum(1)


def test_entropy_of_one_mode_is_zero():
    assert entropy(torch.tensor([7, 0, 0])).item() == pytest.approx(0, abs=1e-12)


def test_entropy_of_many_uniform_counts_is_the_log_of_their_number():
    counts = torch.full((6,), 100_000)
    assert entropy(counts).item() == pytest.approx(math.log(6), abs=1e-5)


def test_entropy_is_the_sum_of_harmonic_numbers():
    # digamma(n + 1) = H_n - gamma, so counts (2, 2): H_3 - H_1 = 1/2 + 1/3.
    assert entropy(torch.tensor([2, 2])).item() == pytest.approx(1 / 2 + 1 / 3, abs=1e-12)


@pytest.mark.parametrize("num_samples", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("probability", [BACKGROUND_GIVEN_COLOUR, torch.tensor([0.7, 0.3]), torch.full((6,), 1 / 6)])
def test_mean_entropy_of_samples_is_the_expected_one(probability, num_samples):
    estimates = entropy(multinomial_counts(probability, num_samples, 20_000))
    standard_error = (estimates.std() / 20_000**0.5).item()
    assert estimates.mean().item() == pytest.approx(expected_entropy(probability, num_samples), abs=4 * standard_error)


def test_expected_entropy_tends_to_the_true_one_faster_than_miller_madow():
    true = -torch.xlogy(BACKGROUND_GIVEN_COLOUR, BACKGROUND_GIVEN_COLOUR).sum().item()
    assert expected_entropy(BACKGROUND_GIVEN_COLOUR, 400) == pytest.approx(true, abs=1e-9)
    # The values that the docstring of `entropy` gives.
    modes = [math.exp(expected_entropy(BACKGROUND_GIVEN_COLOUR, n)) for n in (8, 16, 32)]
    assert math.exp(true) == pytest.approx(4.754, abs=1e-3)
    assert modes == pytest.approx([4.08, 4.58, 4.74], abs=0.006)
    counts = multinomial_counts(BACKGROUND_GIVEN_COLOUR, 16, 20_000).double()
    share = counts / 16
    miller_madow = -torch.xlogy(share, share).sum(1) + ((counts > 0).sum(1) - 1) / 32
    assert modes[1] > miller_madow.mean().exp().item() + 0.05


def test_entropy_of_no_samples_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        entropy(torch.tensor([[1, 2], [0, 0]]))


def test_total_variation_of_known_pairs():
    assert total_variation(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).item() == 1
    assert total_variation(torch.tensor([0.7, 0.3]), torch.tensor([0.5, 0.5])).item() == pytest.approx(0.2)
    assert total_variation(torch.tensor([70, 30]), torch.tensor([7, 3])).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("num_samples", [1, 5, 32, 200])
@pytest.mark.parametrize("probability", [BACKGROUND_GIVEN_COLOUR, torch.tensor([0.5, 0.5]), torch.tensor([0.7, 0.3])])
def test_total_variation_floor_is_the_mean_over_samples(probability, num_samples):
    distances = total_variation(multinomial_counts(probability, num_samples, 10_000), probability)
    standard_error = (distances.std() / 100).item()
    floor = total_variation_floor(probability, num_samples)
    # The last term: one sample of a fair coin is always .5 away, without spread.
    assert floor == pytest.approx(distances.mean().item(), abs=4 * standard_error + 1e-6)


def test_a_certain_factor_has_no_floor():
    assert total_variation_floor(torch.tensor([0.0, 1.0]), 10) == 0


def test_exact_sampling_has_nothing_wrong():
    prompts, scenes = exact_samples(PROMPTS, 400)
    metrics = scene_metrics(prompts, as_reading(scenes))
    assert metrics["named_accuracy"] == 1
    assert metrics["validity"] == 1
    assert metrics["num_images"] == 2400 and metrics["num_prompts"] == 6
    assert metrics["effective_modes_mean"] == pytest.approx(1, abs=0.01)
    for factor, floor in metrics["total_variation_floor"].items():
        assert metrics["total_variation_true"][factor] < 2.5 * floor
        assert metrics["effective_modes"][factor] == pytest.approx(metrics["effective_modes_true"][factor], rel=0.03)
    for factor, true in metrics["spread_true"].items():
        assert metrics["spread"][factor] == pytest.approx(true, rel=0.04)


def test_modes_measured_on_few_exact_samples_are_not_biased_against_exact():
    prompts, scenes = exact_samples([caption({"shape": "circle"}, w) for w in range(3)], 3000)
    # 8 images per "prompt": wording and number make prompts different without naming anything.
    prompts = [f"{prompt} {i // 8}" for i, prompt in enumerate(prompts)]
    metrics = scene_metrics(prompts, as_reading(scenes))
    assert metrics["effective_modes_mean"] == pytest.approx(1, abs=0.02)
    assert metrics["effective_modes"]["colour"] < 0.95 * metrics["effective_modes_true"]["colour"]


def test_effective_modes_of_collapsed_samples_is_one():
    prompts, scenes = exact_samples(["a red square"], 64)
    scenes = changed(scenes, slice(None), background="black", side="left")
    modes = effective_modes(prompts, as_reading(scenes))
    assert modes["background"]["measured"] == pytest.approx(1)
    assert modes["side"]["measured"] == pytest.approx(1)
    assert modes["side"]["true"] == pytest.approx(math.exp(-0.7 * math.log(0.7) - 0.3 * math.log(0.3)), rel=1e-5)
    assert modes["colour"] == {"measured": None, "exact": None, "true": None}


def test_effective_modes_mean_is_the_geometric_mean_of_the_ratios():
    prompts, scenes = exact_samples(["a small red square"], 64)
    metrics = scene_metrics(prompts, as_reading(changed(scenes, slice(None), background="black")))
    background, side = (
        metrics["effective_modes"][f] / metrics["effective_modes_exact"][f] for f in ("background", "side")
    )
    assert metrics["effective_modes_mean"] == pytest.approx((background * side) ** 0.5)


def test_one_wrong_factor_costs_exactly_its_share():
    prompts, scenes = exact_samples(PROMPTS, 10)
    # 10 x (1 + 2 + 3 + 2 + 3 + 2) named factors; one shape and two colours are made wrong.
    scenes = changed(changed(scenes, [0], shape="cross"), [10, 11], colour="cyan")
    accuracy = named_accuracy(prompts, as_reading(scenes))
    assert accuracy["all"] == pytest.approx(1 - 3 / 130)
    assert accuracy["shape"] == pytest.approx(1 - 1 / 60)
    assert accuracy["colour"] == pytest.approx(1 - 2 / 30)
    assert accuracy["size"] == accuracy["background"] == 1


def test_invalid_images_count_for_accuracy_and_not_for_diversity():
    prompts, scenes = exact_samples(["a red square"], 64)
    scenes = changed(scenes, slice(None), background="black")
    scenes = changed(scenes, slice(0, 16), background="white", colour="blue")
    valid = torch.arange(64) >= 16
    metrics = scene_metrics(prompts, as_reading(scenes, valid))
    assert metrics["validity"] == 0.75
    assert metrics["named_accuracy_by_factor"]["colour"] == 0.75
    assert metrics["effective_modes"]["background"] == pytest.approx(1)


def test_total_variation_of_a_sharpened_factor_is_the_missing_mass():
    prompts, scenes = exact_samples(["a red square", "one red cross"], 50)
    variation = total_variation_by_condition(prompts, as_reading(changed(scenes, slice(None), background="black")))
    assert variation["background"]["true"] == pytest.approx(1 - 0.46, abs=1e-6)
    # The two prompts are pooled: both name red.
    assert variation["background"]["floor"] == pytest.approx(total_variation_floor(BACKGROUND_GIVEN_COLOUR, 100))


def test_conditions_are_pooled_by_what_the_factor_depends_on_and_weighted_by_counts():
    prompts = ["a circle"] * 30 + ["a red circle on white"] * 10 + ["one cross"] * 60
    scenes = sample_scenes(100, generator(0, "metrics_test"))
    scenes = changed(changed(scenes, slice(0, 40), side="left"), slice(40, 100), side="left")
    variation = total_variation_by_condition(prompts, as_reading(scenes))
    assert variation["side"]["true"] == pytest.approx(0.4 * 0.3 + 0.6 * 0.7, abs=1e-6)


@pytest.mark.parametrize("factor", ["colour", "background", "size", "side"])
def test_free_factors_depend_on_nothing_but_the_pooled_one(factor):
    everything = {"shape": "cross", "colour": "red", "size": "small", "background": "navy"}
    everything.pop(factor, None)
    depends = {"colour": "background", "background": "colour", "side": "shape"}.get(factor)
    pooled = {name: value for name, value in everything.items() if name == depends}
    torch.testing.assert_close(conditional_probability(factor, everything), conditional_probability(factor, pooled))


def test_total_variation_from_a_reference_is_zero_for_itself_and_one_for_the_opposite():
    prompts, scenes = exact_samples(["a red square", "a cross"], 50)
    left, right = (as_reading(changed(scenes, slice(None), side=side)) for side in ("left", "right"))
    assert scene_metrics(prompts, left, reference=left)["total_variation_reference"]["side"] == 0
    metrics = scene_metrics(prompts, left, reference=right)
    assert metrics["total_variation_reference"]["side"] == 1
    assert "total_variation_reference" not in scene_metrics(prompts, left)


def test_spread_of_a_known_pair():
    scenes = sample_scenes(4, generator(1, "metrics_test"))
    scenes.continuous["x"][:] = torch.tensor([10.0, 12.0, 20.0, 20.0])
    scenes.discrete["shape"][:] = torch.tensor([0, 0, 1, 1])
    scenes.continuous["rotation"][:] = torch.tensor([-20.0, 20.0, 1.0, 3.0])
    out = spread(["a circle", "a circle", "a square", "a square"], as_reading(scenes))
    # Unbiased variances 2 and 0; of the rotations only the squares' count, 2.
    assert out["x"]["measured"] == pytest.approx(1)
    assert out["rotation"]["measured"] == pytest.approx(2**0.5)
    assert out["rotation"]["true"] == pytest.approx(40 / 12**0.5)


def test_metrics_of_rendered_scenes_are_those_of_the_scenes():
    scenes = sample_scenes(96, generator(2, "metrics_test"))
    prompts = sample_captions(scenes, generator(3, "metrics_test"))
    reading = read_scenes(render(scenes))
    metrics = scene_metrics(prompts, reading, reference=reading)
    assert metrics["named_accuracy"] == metrics["validity"] == 1
    exact = scene_metrics(prompts, as_reading(scenes))
    assert metrics["total_variation_true"] == exact["total_variation_true"]
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_numbers_without_images_are_none():
    scenes = sample_scenes(2, generator(4, "metrics_test"))
    metrics = scene_metrics(["a circle", "a cross"], as_reading(scenes, torch.tensor([False, False])))
    assert metrics["validity"] == 0
    assert metrics["effective_modes_mean"] is None
    assert metrics["total_variation_true"]["side"] is None
    assert metrics["spread"]["x"] is None
    assert metrics["named_accuracy_by_factor"]["size"] is None
    json.dumps(metrics, allow_nan=False)


def test_prompts_and_images_must_match():
    reading = as_reading(sample_scenes(2, generator(5, "metrics_test")))
    with pytest.raises(ValueError, match="got 1 prompts for 2 images"):
        scene_metrics(["a circle"], reading)
    with pytest.raises(ValueError, match="reference: expected one prompt per image"):
        scene_metrics(["a circle"] * 2, reading, reference=reading[:1])


def test_exact_samples_of_the_tests_are_conditional_samples():
    _, scenes = exact_samples(["a red square"], 2000)
    share = torch.bincount(scenes.discrete["background"], minlength=6) / 2000
    expected = joint_probability()[1, 0].sum((0, 2))
    torch.testing.assert_close(share, expected / expected.sum(), atol=0.045, rtol=0)
