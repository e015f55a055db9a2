import pytest
import torch
from torch import nn

from dpdmd.roles import ROLES, SeparateCopies


@pytest.fixture
def roles():
    torch.manual_seed(0)
    return SeparateCopies(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 3)))


def state(roles, role):
    with roles.use(role) as network:
        return {name: value.clone() for name, value in network.state_dict().items()}


def test_every_role_starts_as_the_teacher(roles):
    teacher = state(roles, "teacher")
    for role in ROLES:
        assert all(torch.equal(value, teacher[name]) for name, value in state(roles, role).items())


@pytest.mark.parametrize("role", ["student", "fake_score"])
def test_an_update_of_one_role_changes_all_of_it_and_nothing_else(role, roles):
    before = {name: state(roles, name) for name in ROLES}
    with torch.no_grad():
        for parameter in roles.parameters(role):
            parameter += 1
    for name in ROLES:
        after = state(roles, name)
        assert all(torch.equal(after[key], value + (name == role)) for key, value in before[name].items())


def test_the_teacher_is_frozen_and_the_others_train(roles):
    assert roles.parameters("teacher") == []
    with roles.use("teacher") as network:
        assert not network.training and not any(p.requires_grad for p in network.parameters())
    for role in ("student", "fake_score"):
        with roles.use(role) as network:
            assert network.training and len(roles.parameters(role)) == 4


def test_a_teacher_loaded_frozen_still_gives_roles_that_train():
    roles = SeparateCopies(nn.Linear(2, 2).requires_grad_(False).eval())
    assert len(roles.parameters("student")) == len(roles.parameters("fake_score")) == 2


def test_an_unknown_role_is_refused(roles):
    with pytest.raises(KeyError, match="discriminator"), roles.use("discriminator"):
        pass
