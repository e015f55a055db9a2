import pytest
import torch
from peft import LoraConfig
from torch import nn

from dpdmd.method.roles import ROLES
from dpdmd.models.role_networks import make_roles


@pytest.fixture
def roles():
    torch.manual_seed(0)
    return make_roles(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 3)))


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
        for parameter in roles.parameters(role).values():
            parameter += 1
    for name in ROLES:
        after = state(roles, name)
        assert all(torch.equal(after[key], value + (name == role)) for key, value in before[name].items())


def test_the_teacher_is_frozen_and_the_others_train(roles):
    assert roles.parameters("teacher") == {}
    with roles.use("teacher") as network:
        assert not network.training and not any(p.requires_grad for p in network.parameters())
    for role in ("student", "fake_score"):
        with roles.use(role) as network:
            assert network.training and len(roles.parameters(role)) == 4


def test_a_teacher_loaded_frozen_still_gives_roles_that_train():
    roles = make_roles(nn.Linear(2, 2).requires_grad_(False).eval())
    assert len(roles.parameters("student")) == len(roles.parameters("fake_score")) == 2


def test_an_unknown_role_is_refused(roles):
    with pytest.raises(KeyError, match="discriminator"), roles.use("discriminator"):
        pass


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


@pytest.fixture
def adapters():
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["0", "2"])
    return make_roles(network(), lora={"student": config, "fake_score": config}, seed=1)


def output(roles, role):
    with roles.use(role) as module:
        return module(torch.linspace(-1, 1, 6).view(2, 3))


def move(roles, role):
    with torch.no_grad():
        for parameter in roles.parameters(role).values():
            parameter += 1


def test_adapters_start_as_the_teacher_bit_for_bit(adapters):
    expected = network()(torch.linspace(-1, 1, 6).view(2, 3))
    for role in ROLES:
        assert torch.equal(output(adapters, role), expected)
    student, fake_score = (list(adapters.parameters(role).values()) for role in ("student", "fake_score"))
    assert not torch.equal(student[0], fake_score[0])  # not the same random halves


def test_each_adapter_speaks_for_its_own_role_only(adapters):
    before = {role: output(adapters, role) for role in ROLES}
    move(adapters, "student")
    assert torch.equal(output(adapters, "teacher"), before["teacher"])
    assert torch.equal(output(adapters, "fake_score"), before["fake_score"])
    assert not torch.allclose(output(adapters, "student"), before["student"])


def test_an_adapter_is_its_formula(adapters):
    """W x + b + (alpha / rank) B A x, with names that do not say whose it is."""
    move(adapters, "student")
    weights, base = adapters.parameters("student"), network()
    assert set(weights) == {f"{layer}.lora_{half}.weight" for layer in "02" for half in "AB"}

    def layer(i, x):
        return base[i](x) + 2 * x @ weights[f"{i}.lora_A.weight"].T @ weights[f"{i}.lora_B.weight"].T

    expected = layer(2, torch.tanh(layer(0, torch.linspace(-1, 1, 6).view(2, 3))))
    assert torch.allclose(output(adapters, "student"), expected, atol=1e-5)


def test_a_backward_pass_after_other_roles_have_spoken_reaches_its_own_adapter(adapters):
    move(adapters, "student")
    loss = output(adapters, "student").square().sum()
    with torch.no_grad():
        output(adapters, "fake_score"), output(adapters, "teacher")
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters.parameters("student").values())
    assert all(p.grad is None for p in adapters.parameters("fake_score").values())


def test_the_role_of_before_is_back_after_an_error_and_after_nesting(adapters):
    move(adapters, "student")
    student = output(adapters, "student")
    with adapters.use("student") as module:
        with pytest.raises(RuntimeError), adapters.use("teacher"):
            raise RuntimeError
        output(adapters, "fake_score")
        assert torch.equal(module(torch.linspace(-1, 1, 6).view(2, 3)), student)


def test_a_full_student_with_an_adapted_fake_score():
    roles = make_roles(network(), lora={"fake_score": LoraConfig(r=2, target_modules=["0"])})
    assert roles.networks["fake_score"] is roles.networks["teacher"] is not roles.networks["student"]
    before = output(roles, "teacher")
    move(roles, "student")
    assert torch.equal(output(roles, "teacher"), before) and torch.equal(output(roles, "fake_score"), before)
    assert set(roles.parameters("student")) == {"0.weight", "0.bias", "2.weight", "2.bias"}
