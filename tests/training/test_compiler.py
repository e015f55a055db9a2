"""train.compile without a compiler is refused before anything is loaded."""

import pytest
from trainers import train

from dpdmd.training.networks import require_compiler


@pytest.mark.parametrize(("name", "value"), [("CXX", "/nonexistent"), ("PATH", "/nonexistent")])
def test_no_compiler_is_refused_by_the_key_before_the_networks_are_loaded(
    make_recipe, adapter, monkeypatch, tmp_path, name, value
):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(type(adapter), "load_network", lambda *_: pytest.fail("loaded"))
    recipe = make_recipe(train={"compile": True})
    with pytest.raises(ValueError, match=r"train\.compile needs .* and there is no (/nonexistent|g\+\+)"):
        train(recipe, adapter, progress=False)
    assert not (tmp_path / recipe.output.folder).exists()


def test_a_compiler_that_is_there_is_found(monkeypatch, tmp_path):
    compiler = tmp_path / "my-compiler"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(compiler))
    require_compiler()
