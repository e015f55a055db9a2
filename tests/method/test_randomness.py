import itertools

import torch

from dpdmd.method.randomness import generator


def draw(*name):
    return torch.randn(2000, generator=generator(*name))


def test_equal_names_give_equal_numbers():
    assert torch.equal(draw(3, "student_noise", 7, 1), draw(3, "student_noise", 7, 1))


def test_numbers_are_the_same_on_every_machine():
    # A changed derivation would silently change every run that is resumed.
    # sha256 of "0/student_noise/5/2", its first eight bytes.
    assert generator(0, "student_noise", 5, 2).initial_seed() == 15083830742484964088
    assert generator(0, "x").initial_seed() == generator(0, "x", 0, 0).initial_seed()


def test_every_part_of_the_name_gives_independent_numbers():
    names = list(itertools.product((0, 1), ("student_noise", "fake_noise"), (0, 1, 11), (0, 1)))
    draws = torch.stack([draw(*name) for name in names])
    correlation = torch.corrcoef(draws) - torch.eye(len(names))
    assert correlation.abs().max() < 5 / 2000**0.5


def test_parts_of_the_name_do_not_run_together():
    names = [(1, "a", 11, 1), (1, "a", 1, 11), (11, "a", 1, 1), (1, "a/1", 1, 1), (1, "a/11", 1, 0), (1, "a", 111, 0)]
    assert len({generator(*name).initial_seed() for name in names}) == len(names)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    draw(0, "student_noise")
    assert torch.equal(torch.get_rng_state(), before)
