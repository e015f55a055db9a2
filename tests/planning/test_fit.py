"""What makes a recipe fit."""

from types import SimpleNamespace

import pytest

from dpdmd.planning.fit import GIB, Need, describe_fit, reserve, savings

CHECKPOINTING = "train.gradient_checkpointing=true"
NUM_BLOCKS = 15
BATCH_2, BATCH_1 = (
    ("train.batch_size=2", "train.accumulation=16"),
    ("train.batch_size=1", "train.accumulation=32"),
)
LORA = 'lora.roles=["student", "fake_score"]'


def plan_of(settings: tuple[str, ...]) -> SimpleNamespace:
    """A plan is its settings; int8 and nf4 want adapters, and bf16 is there already."""
    kept = {name: value for name, _, value in (text.partition("=") for text in settings)}
    if kept.get("model.dtype") in ("int8", "nf4") and "lora.roles" not in kept:
        raise ValueError("needs lora.roles")
    kept.pop("train.precision", None)
    optimiser = kept.get("train.optimiser", "adamw")
    if optimiser == "adamw":
        kept.pop("train.optimiser", None)
    batch_size = int(kept.get("train.batch_size", 4))
    data = SimpleNamespace(batch_size=batch_size, accumulation=32 // batch_size, samples_per_prompt=1)
    lora = SimpleNamespace(roles=("student", "fake_score") if "lora.roles" in kept else ())
    return SimpleNamespace(settings=kept, data=data, lora=lora, optimiser=SimpleNamespace(optimiser=optimiser))


def need_of(plan: SimpleNamespace) -> Need:
    """Adapters make the state small; only then does the batch dominate the need."""
    kept = plan.settings
    weights = {"int8": 15, "nf4": 10, "bf16": 20}.get(kept.get("model.dtype"), 40)
    recomputed = {"true": NUM_BLOCKS, "false": 0}.get(text := kept.get("train.gradient_checkpointing", "false"))
    activations = (20 - (int(text) if recomputed is None else recomputed)) * plan.data.batch_size
    gradients = 2 if "lora.roles" in kept else 60
    moments = {"adamw": 2, "adamw_8bit": 0.5, "adamw_offloaded": 0}[plan.optimiser.optimiser]
    return Need(round((weights + (1 + moments) * gradients) * GIB), max(activations, gradients) * GIB)


def found(memory: float) -> list[tuple[tuple[str, ...], float]]:
    steps = savings(plan_of, need_of, round(memory * GIB), NUM_BLOCKS)
    return [(settings, need.total / GIB) for settings, need in steps]


def blocks(number: int) -> tuple[str]:
    return (f"train.gradient_checkpointing={number}",)


EIGHT_BIT, OFFLOADED = ((f"train.optimiser=adamw{kind}",) for kind in ("_8bit", "_offloaded"))
IN_BF16 = [((CHECKPOINTING,), 280), (("model.dtype=bf16",), 260)]
ALL_BUT_ADAPTERS = [*IN_BF16, (EIGHT_BIT, 170), (OFFLOADED, 140)]


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (400, []),
        # 20 of weights, 180 of what is trained, 60 of gradients: another batch would change nothing.
        (270, [*IN_BF16, (blocks(3), 268)]),
        (181, [*IN_BF16, (EIGHT_BIT, 170), (blocks(3), 178)]),
        (141, [*ALL_BUT_ADAPTERS, (blocks(5), 140)]),
        # With adapters the moments may stay on the device: the other optimisers are not needed.
        (55, [*IN_BF16, ((LORA,), 46), (blocks(13), 54)]),
        (43, [*ALL_BUT_ADAPTERS, ((LORA,), 42)]),
        (40, [*IN_BF16, ((LORA,), 46), (BATCH_1, 31), (BATCH_2, 36), (blocks(13), 40)]),
        (34, [*IN_BF16, ((LORA,), 46), (BATCH_1, 31), (blocks(12), 34)]),
    ],
)
def test_what_costs_least_comes_first_and_no_more_than_it_takes(memory, expected):
    available = memory + 0.5
    device = (available + 1) * 20 / 19  # 1 GiB and a twentieth are kept back
    assert found(device) == expected


@pytest.mark.parametrize(
    ("memory", "number", "need"), [(264, 14, 264), (287, 9, 284), (316, 1, 316), (319.9, 1, 316), (263, None, 260)]
)
def test_as_few_blocks_are_recomputed_as_memory_allows(memory, number, need):
    def counted(plan):  # 240 that stay, and 80 less 4 for each recomputed block
        counts.append(plan)
        text = plan.settings.get("train.gradient_checkpointing", "false")
        recomputed = {"true": NUM_BLOCKS, "false": 0}.get(text)
        return Need(240 * GIB, (80 - 4 * (int(text) if recomputed is None else recomputed)) * GIB)

    counts: list = []
    steps = savings(plan_of, counted, round((memory + 1) * 20 / 19 * GIB) + 1, NUM_BLOCKS)
    assert [settings for settings, _ in steps] == [(CHECKPOINTING,)] + ([blocks(number)] if number else [])
    assert steps[-1][1].total == need * GIB and len(counts) < 9


def test_every_setting_that_saves_something_is_taken_where_nothing_is_enough():
    steps = found(1)
    assert [settings for settings, _ in steps] == [
        (CHECKPOINTING,), ("model.dtype=bf16",), EIGHT_BIT, OFFLOADED, (LORA,), BATCH_1, ("model.dtype=int8",),
        ("model.dtype=nf4",),
    ]  # fmt: skip
    totals = [total for _, total in steps]
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize(
    ("optimiser", "roles"), [("adafactor", ()), ("adamw_8bit", ()), ("adamw", ("student", "fake_score"))]
)
def test_an_optimiser_that_was_chosen_stays_and_so_does_that_of_adapters(optimiser, roles):
    def load(settings: tuple[str, ...]) -> SimpleNamespace:
        asked.extend(settings)
        plan = plan_of(settings)
        plan.optimiser, plan.lora = SimpleNamespace(optimiser=optimiser), SimpleNamespace(roles=roles)
        return plan

    asked: list[str] = []
    savings(load, lambda plan: Need(GIB, GIB - len(plan.settings)), GIB, NUM_BLOCKS)
    assert "model.dtype=bf16" in asked and not any("optimiser" in setting for setting in asked)


def test_samples_of_one_prompt_stay_together():
    def load(settings: tuple[str, ...]) -> SimpleNamespace:
        plan = plan_of(settings)
        if plan.data.batch_size % 2:
            raise ValueError("train.batch_size must be a multiple of data.samples_per_prompt")
        plan.data.samples_per_prompt = 2
        return plan

    assert (BATCH_2 in [settings for settings, _ in savings(load, need_of, GIB, NUM_BLOCKS)]) and need_of(
        load(())
    ).total > GIB


def test_the_settings_are_printed_in_one_line_with_each_key_once():
    steps = [(BATCH_1, Need(10 * GIB, 10 * GIB)), ((LORA,), Need(8 * GIB, GIB)), (BATCH_2, Need(8 * GIB, 2 * GIB))]
    text = describe_fit(Need(90 * GIB, 10 * GIB, "in an update"), 20 * GIB, steps)
    assert "at the peak, in an update: 10.00 GiB, counted on the meta device, on top of 90.00 GiB that stay" in text
    assert "100.00 GiB per device: does not fit in 20.0 GiB, of which 2.0 are left for" in text
    assert f"  with --set '{LORA}': 9.00 GiB, fits" in text
    assert text.splitlines()[-1] == (f"so add --set train.batch_size=2 --set train.accumulation=16 --set '{LORA}'")


def test_a_plan_that_fits_needs_nothing_and_one_that_never_fits_is_reported():
    assert describe_fit(Need(GIB, GIB), 24 * GIB, []).splitlines()[-1].startswith("2.00 GiB per device: fits in 24.0")
    assert "not on one such device" in describe_fit(Need(90 * GIB, GIB), 24 * GIB, [((LORA,), Need(80 * GIB, GIB))])


def test_the_reserve_is_never_more_than_there_is():
    assert reserve(24 * GIB) == GIB + 24 * GIB // 20
    assert reserve(1000) == 1000
