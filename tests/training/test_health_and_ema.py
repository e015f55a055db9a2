"""Closed forms of what is logged and averaged."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from trainers import new_trainer

from dpdmd.recipe.resolve import resolve
from dpdmd.training.ema import Ema, align
from dpdmd.training.health import sample_health


def test_sample_health_of_known_values():
    x0 = torch.tensor([-4.0, -2.0, 2.0, 4.0]).repeat(2, 4, 4, 1)
    health = sample_health(x0)
    assert health["mean"] == 0
    assert health["std"] == pytest.approx(10**0.5)
    assert health["saturation"] == 0.5


def test_saturation_of_a_normal_distribution():
    x0 = torch.randn(64, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    # P(|x| > 3) = .0027; 262144 draws have a standard error of .0001.
    assert sample_health(x0)["saturation"] == pytest.approx(0.0027, abs=4e-4)


def test_ema_is_the_weighted_sum_of_what_it_saw():
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(8.0)
    ema = Ema(dict(network.named_parameters()), 0.75)
    for value in (4.0, 0.0):
        network.weight.data.fill_(value)
        ema.update()
    assert ema.average["weight"].item() == 0.75 * (0.75 * 8 + 0.25 * 4) + 0.25 * 0
    assert network.weight.item() == 0.0


def test_ema_is_applied_within_the_block_only_even_after_an_error():
    network = nn.Linear(2, 2)
    ema = Ema(dict(network.named_parameters()), 0.9)
    network.weight.data.add_(1)
    own, average = network.weight.detach().clone(), ema.average["weight"].clone()
    with pytest.raises(RuntimeError), ema.applied():
        assert torch.equal(network.weight, average)
        raise RuntimeError
    assert torch.equal(network.weight, own)
    assert torch.equal(ema.average["weight"], average)


def test_an_aligned_fake_score_moves_by_its_share_to_the_student_and_the_student_stays():
    fake, student = ({"w": nn.Parameter(torch.tensor([value, 3.0]))} for value in (1.0, 2.0))
    for _ in range(3):
        align(fake, student, 0.75)
    assert fake["w"].tolist() == [2 - 0.75**3, 3.0] and student["w"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_the_fake_score_is_aligned_after_each_iteration(make_recipe, adapter, decay):
    """Against a run without: the same iteration, then the same share of the same student."""
    plain, aligned = (new_trainer(make_recipe(train={"ida_decay": value}), adapter) for value in (1.0, decay))
    for trainer in (plain, aligned):
        trainer.iterate()
    for name, fake in plain.network("fake_score").named_parameters():
        student = plain.network("student").get_parameter(name)
        expected = decay * fake + (1 - decay) * student
        assert_close(aligned.network("fake_score").get_parameter(name), expected)
        assert torch.equal(aligned.network("student").get_parameter(name), student)


def test_an_adapter_cannot_be_aligned_to_a_whole_network(make_recipe, adapter):
    for role in ("student", "fake_score"):
        message = rf"train\.ida_decay = 0\.9 .*lora\.roles = \['{role}'\] .*: name both, or set train\.ida_decay = 1$"
        with pytest.raises(ValueError, match=message):
            resolve(make_recipe(train={"ida_decay": 0.9}, lora={"roles": [role]}), adapter)
