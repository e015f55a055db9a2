"""Draws: each prompt once per pass, the same prompts whatever the layout, different noise everywhere."""

import hashlib
from functools import partial

import pytest
import torch

from dpdmd.models.base import encoded
from dpdmd.training.data import BatchSource, EncodedPrompts, prompt_indices, prompts_digest


def source(adapter, *, rank=0, num_processes=1, batch_size=2, accumulation=1, prompts=None, seed=0):
    return BatchSource(
        prompts=EncodedPrompts(prompts or [f"prompt {i}" for i in range(11)], partial(encoded, adapter)),
        latent_shape=(4, 4, 4),
        seed=seed,
        batch_size=batch_size,
        accumulation=accumulation,
        fake_updates=3,
        rank=rank,
        num_processes=num_processes,
        device=torch.device("cpu"),
    )


def test_every_pass_has_every_prompt_once_in_another_order():
    order = prompt_indices(range(30), 10, seed=0, stream="s").tolist()
    passes = [order[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(p) == list(range(10)) for p in passes)
    assert len({tuple(p) for p in passes}) == 3
    assert prompt_indices(range(7, 23), 10, seed=0, stream="s").tolist() == order[7:23]


@pytest.mark.parametrize("role", ["student", "fake_score"])
def test_an_updates_prompts_do_not_depend_on_processes_or_accumulation(adapter, role):
    def prompts(step, update, *, num_processes, accumulation, batch_size):
        layout = {"num_processes": num_processes, "accumulation": accumulation, "batch_size": batch_size}
        return [
            prompt
            for index in range(accumulation)
            for rank in range(num_processes)
            for prompt in source(adapter, rank=rank, **layout).micro_batch(role, step, index, update=update).prompts
        ]

    for step, update in ((0, 0), (1, 0)) + (((1, 2),) if role == "fake_score" else ()):
        one = prompts(step, update, num_processes=1, accumulation=1, batch_size=8)
        assert one == prompts(step, update, num_processes=1, accumulation=4, batch_size=2)
        assert one == prompts(step, update, num_processes=2, accumulation=2, batch_size=2)
        assert one == prompts(step, update, num_processes=4, accumulation=1, batch_size=2)


def levels(adapter, *, num_processes, accumulation, batch_size, step=0):
    layout = {"num_processes": num_processes, "accumulation": accumulation, "batch_size": batch_size}
    return [
        source(adapter, rank=rank, **layout).micro_batch("student", step, index).levels
        for index in range(accumulation)
        for rank in range(num_processes)
    ]


@pytest.mark.parametrize("layout", [(1, 6), (2, 3), (3, 2), (6, 1)], ids=str)
def test_levels_are_stratified_over_the_micro_batch_and_over_the_update_of_all_processes(adapter, layout):
    number, accumulation = layout
    of_update = levels(adapter, num_processes=number, accumulation=accumulation, batch_size=4)
    assert all(sorted((4 * u).long().tolist()) == [0, 1, 2, 3] for u in of_update)
    assert sorted((24 * torch.cat(of_update)).long().tolist()) == list(range(24))
    whole = levels(adapter, num_processes=1, accumulation=6, batch_size=4)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(of_update, whole, strict=True))
    other = levels(adapter, num_processes=number, accumulation=accumulation, batch_size=4, step=1)
    assert not torch.equal(torch.cat(of_update), torch.cat(other))


def test_levels_of_single_samples_take_turns_through_the_update(adapter):
    of_update = torch.cat(levels(adapter, num_processes=2, accumulation=4, batch_size=1))
    assert sorted((8 * of_update).long().tolist()) == list(range(8))


def test_consecutive_updates_go_through_the_prompts_without_repeating(adapter):
    batches = source(adapter, batch_size=3)
    seen = [
        p for step in (0, 1) for m in range(3) for p in batches.micro_batch("fake_score", step, 0, update=m).prompts
    ]
    assert len(set(seen[:11])) == 11


def test_noise_differs_between_ranks_steps_updates_micro_batches_roles_and_seeds(adapter):
    draws = [
        source(adapter, rank=rank, num_processes=2, accumulation=2, seed=seed).micro_batch(role, step, index, update=m)
        for seed in (0, 1)
        for rank in (0, 1)
        for step in (0, 1)
        for index in (0, 1)
        for role, updates in (("student", 1), ("fake_score", 3))
        for m in range(updates)
    ]
    assert len({batch.noise.numpy().tobytes() for batch in draws}) == len(draws) == 64
    assert len({torch.rand(1, generator=batch.rng("dmd")).item() for batch in draws}) == len(draws)


def test_a_micro_batch_is_the_same_whenever_it_is_drawn(adapter):
    first = source(adapter)
    for step in range(5):
        first.micro_batch("student", step, 0)
    a, b = first.micro_batch("student", 5, 0), source(adapter).micro_batch("student", 5, 0)
    assert a.prompts == b.prompts
    assert torch.equal(a.noise, b.noise)


def test_conditioning_belongs_to_its_prompt_and_uncond_is_the_empty_prompts(adapter):
    batch = source(adapter, batch_size=4).micro_batch("student", 0, 0)
    expected = adapter.encode(batch.prompts).tensors["embeds"]
    assert torch.equal(batch.cond.tensors["embeds"], expected)
    assert torch.equal(batch.uncond.tensors["embeds"], adapter.encode([""]).tensors["embeds"].expand(4, -1))


def test_the_digest_of_prompts_is_that_of_a_file_with_one_per_line():
    """As version 0.1.0 has written it into checkpoints, which are still resumed."""
    assert prompts_digest(["a red circle", "größer"]) == hashlib.sha256("a red circle\ngrößer".encode()).hexdigest()
