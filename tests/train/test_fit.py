"""What makes a recipe fit."""

from dpdmd.train import fit
from dpdmd.train.fit import Need, savings


def test_savings_are_put_on_top_of_each_other_until_it_fits_and_excluded_ones_left_out(monkeypatch):
    sizes = {"train.precision=bf16": 5, "train.gradient_checkpointing=true": -30, "train.batch_size=1": -20}

    def load(overrides):
        if "model.dtype=bf16" in overrides:
            raise ValueError("needs train.precision bf16")
        return tuple(overrides)

    counted = []

    def need(recipe, adapter):
        counted.append(recipe)
        return Need(60 + sum(sizes.get(setting, -10) for setting in recipe), 40)

    monkeypatch.setattr(fit, "memory_need", need)
    found = savings(load, None, Need(60, 40), available=45)
    assert [(setting, smaller.total) for setting, smaller in found] == [
        ("train.gradient_checkpointing=true", 70),
        ("train.batch_size=1", 50),
        ('lora.roles=["student", "fake_score"]', 40),
    ]
    assert counted == [  # each once, and bf16, which saves nothing here, is not kept
        ("train.precision=bf16",),
        ("train.gradient_checkpointing=true",),
        ("train.gradient_checkpointing=true", "train.batch_size=1"),
        ("train.gradient_checkpointing=true", "train.batch_size=1", 'lora.roles=["student", "fake_score"]'),
    ]
    assert savings(load, None, Need(60, 40), available=100) == []
