"""Generated recipes: what is valid comes back equal, what is damaged is named by its key."""

import subprocess
import sys

import pytest
import recipes
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from dpdmd.recipe.schema import Recipe
from dpdmd.recipe.toml import dump_recipe, flatten, load_recipe


def plain(value):
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@given(values=recipes.valid_recipes())
def test_a_valid_recipe_is_what_it_was_made_from(tmp_path, values):
    path = tmp_path / "r.toml"
    path.write_text(tomli_w.dumps(recipes.nested(values)), encoding="utf-8")
    recipe = load_recipe(path)
    found = flatten(recipe)
    assert {key: plain(found[key]) for key in values} == values
    left_out = {key: field.get_default() for key, field in recipes.FIELDS.items() if key not in values}
    assert {key: found[key] for key in left_out} == left_out
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe


@given(data=st.data(), values=recipes.valid_recipes())
def test_a_damaged_recipe_is_refused_by_the_key(tmp_path, data, values):
    key = data.draw(st.sampled_from(sorted(recipes.FIELDS.keys() - recipes.FIXED - recipes.OWN.keys())), "key")
    values[key] = data.draw(recipes.wrong(key), "value")
    path = tmp_path / "r.toml"
    path.write_text(tomli_w.dumps(recipes.nested(values)), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        load_recipe(path)
    assert key in str(caught.value) and str(path) in str(caught.value) and len(str(caught.value)) < 20_000


@given(data=st.data(), values=recipes.valid_recipes(), noise=st.binary(max_size=20))
def test_a_recipe_with_other_bytes_in_it_is_read_or_refused(tmp_path, data, values, noise):
    text = tomli_w.dumps(recipes.nested(values)).encode()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    path = tmp_path / "r.toml"
    path.write_bytes(text[:start] + noise + text[end:])
    try:
        assert isinstance(load_recipe(path), Recipe)
    except ValueError as error:
        assert str(path) in str(error)


@given(key=st.text(max_size=30), value=st.text(max_size=30))
def test_an_override_of_any_text_is_taken_or_refused(key, value):
    try:
        load_recipe("scenes_dmd", [f"{key}={value}"])
    except ValueError as error:
        assert str(error)


@settings(max_examples=max(5, settings().max_examples // 3))
@given(values=recipes.valid_recipes())
def test_the_command_line_prints_a_valid_recipe_as_it_is(tmp_path, dpdmd, values):
    path = tmp_path / "r.toml"
    path.write_text(tomli_w.dumps(recipes.nested(values)), encoding="utf-8")
    code, out, err = dpdmd("config", path)
    assert code == 0, err
    (tmp_path / "again.toml").write_text(out, encoding="utf-8")
    assert load_recipe(tmp_path / "again.toml") == load_recipe(path)


@settings(max_examples=max(5, settings().max_examples // 3))
@given(data=st.data(), values=recipes.valid_recipes())
def test_the_command_line_ends_with_code_2_for_a_damaged_recipe(tmp_path, dpdmd, data, values):
    key = data.draw(st.sampled_from(sorted(recipes.FIELDS.keys() - recipes.FIXED - recipes.OWN.keys())), "key")
    values[key] = data.draw(recipes.wrong(key), "value")
    path = tmp_path / "r.toml"
    path.write_text(tomli_w.dumps(recipes.nested(values)), encoding="utf-8")
    out = tmp_path / "comparison"
    for command in (["config"], ["train"], ["plan"], ["compare", "--budget", "1 steps", "--out", out]):
        code, _, err = dpdmd(command[0], path, *command[1:])
        assert code == 2 and err.startswith("error: ") and key in err and "Traceback" not in err
    assert not (tmp_path / "run").exists() and not out.exists()


@pytest.mark.parametrize(("text", "code"), [("", 2), ("\0", 2), ("[model]\nteacher = 3\n", 2)])
def test_a_process_ends_as_main_does(tmp_path, environment, text, code):
    (tmp_path / "r.toml").write_text(text)
    done = subprocess.run([sys.executable, "-m", "dpdmd", "config", "r.toml"], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == code and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
