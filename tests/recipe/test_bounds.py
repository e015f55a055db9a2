"""Numbers, names and files that are too large are refused at once, with a reason."""

import os
import subprocess
import sys
import time

import pytest
from pydantic import BaseModel

from dpdmd.compare.arms import parse_budget, parse_scales, parse_seeds
from dpdmd.data.prompts import read_prompts
from dpdmd.evaluate.generate import require_different
from dpdmd.method.guidance import Guidance
from dpdmd.recipe import bounds
from dpdmd.recipe.schema import Recipe
from dpdmd.recipe.toml import load_recipe, recipe_keys

RECIPE = '[model]\nteacher = "scenes"\n[data]\nprompts = "scenes"\n[output]\nfolder = "run"\n'


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(RECIPE)
    return path


def numbers() -> list[str]:
    """The keys of a recipe that hold one number."""
    return [key for key, field in recipe_keys() if str(field.annotation) in NUMBER_TYPES]


NUMBER_TYPES = {"<class 'int'>", "<class 'float'>", "int | None", "float | None", "typing.Optional[int]"}


def test_every_number_of_a_recipe_has_an_upper_bound():
    schemas = {key: field.metadata for key, field in recipe_keys()}
    without = [
        key for key in numbers() if not any(getattr(m, "le", None) or getattr(m, "lt", None) for m in schemas[key])
    ]
    assert without == ["student.num_steps"]  # 2 to 8, by a validator


@pytest.mark.parametrize("key", numbers())
@pytest.mark.parametrize("value", ["1e39", "1" + 40 * "0", "inf", "nan", "1" * 5000, "-1e39"])
def test_absurd_numbers_are_refused_by_their_key_and_shortly(recipe, key, value):
    with pytest.raises(ValueError) as caught:
        load_recipe(recipe, [f"{key}={value}"])
    assert key in str(caught.value) or "a value of it cannot be read" in str(caught.value)
    assert len(str(caught.value)) < 1200


def test_a_bound_says_why(recipe):
    with pytest.raises(
        ValueError, match=r"train\.num_updates should be less than or equal to 100000000, got 1000000000"
    ):
        load_recipe(recipe, ["train.num_updates=1000000000"])
    with pytest.raises(ValueError, match="more updates take years on any machine"):
        load_recipe(recipe, ["train.num_updates=1000000000"])
    with pytest.raises(ValueError, match=r"model\.guidance_scale .*larger values overflow in fp32"):
        load_recipe(recipe, ["model.guidance_scale=1e4"])
    with pytest.raises(ValueError, match="seeds have 63 bits"):
        load_recipe(recipe, [f"train.seed={2**63}"])
    assert load_recipe(recipe, [f"train.seed={2**63 - 1}"]).train.seed == 2**63 - 1


NESTED = 10_000
DEEP = {
    "arrays": f"[model]\nteacher = {'[' * NESTED}{']' * NESTED}\n",
    "tables": f"[model]\nteacher = {'{a = ' * NESTED}1{'}' * NESTED}\n",
    "dotted": f"[model]\n{'.'.join('a' * NESTED)} = 1\n",
    "header": f"[{'.'.join('a' * NESTED)}]\nb = 1\n",
    "digits": f"[train]\nseed = {'1' * 100_000}\n",
    "key": f"{'k' * 100_000} = 1\n",
    "nul": 'output.folder = "a\\u0000b"\n',
    "name": f'output.folder = "{"n" * 300}"\n',
    "long": f'data.prompts = "{"n/" * 5000}"\n',
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_and_endless_recipes_are_refused_within_seconds(tmp_path, kind):
    path = tmp_path / "deep.toml"
    path.write_text(DEEP[kind])
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"deep\.toml") as caught:
        load_recipe(path)
    assert time.monotonic() - started < 10 and len(str(caught.value)) < 4000


@pytest.mark.parametrize(
    "override", ["model.teacher=" + "[" * NESTED, ".".join("a" * NESTED) + "=1", "a" * 10**6 + ".b=1"]
)
def test_deep_and_endless_overrides_are_refused(recipe, override):
    with pytest.raises(ValueError) as caught:
        load_recipe(recipe, [override])
    assert len(str(caught.value)) < 12_000


def test_devices_pipes_and_large_files_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.toml").write_text("# comment\n" * 200_000)
    for path in ("/dev/zero", tmp_path / "pipe"):
        with pytest.raises(ValueError, match="is no ordinary file but a device or pipe, which may have no end"):
            load_recipe(path)
        with pytest.raises(ValueError, match="is no ordinary file but a device or pipe, which may have no end"):
            read_prompts(path)
    with pytest.raises(ValueError, match=r"large\.toml has 2,000,000 bytes; more than 1,048,576"):
        load_recipe(tmp_path / "large.toml")


def test_seeds_of_images_end_with_64_bits_and_folders_with_ten_million_images():
    last = 2**64 - 1
    require_different(["a"], [last - 1, last], 1)
    with pytest.raises(ValueError, match=f"seeds must be at most {last}.* go up to {last + 1}: lower --seed"):
        require_different(["a"], [last, last + 1], 1)
    with pytest.raises(ValueError, match=r"more than 10,000,000 files"):
        require_different([str(i) for i in range(4000)], list(range(2501)), 1)


def test_options_of_a_comparison_are_bounded():
    assert parse_seeds("3-5,9") == [3, 4, 5, 9]
    for text in ("0-99999999999", f"{2**63}", "0-" + "9" * 50):
        with pytest.raises(ValueError, match="--seeds"):
            parse_seeds(text)
    with pytest.raises(ValueError, match="--budget"):
        parse_budget("9" * 400 + " seconds")
    for text in ("1e39", "nan", "inf"):
        with pytest.raises(ValueError, match="--guidance"):
            parse_scales(text)
    for scale in (1e39, float("inf"), float("nan"), 0.5):
        with pytest.raises(ValueError, match="at most 1000"):
            Guidance(scale)


OPTIONS = [
    ("sample", "scenes", "--prompt", "a", "--out", "o", "--seed", str(2**64)),
    ("sample", "scenes", "--prompt", "a", "--out", "o", "--images-per-prompt", "1000000000"),
    ("sample", "scenes", "--prompt", "a", "--out", "o", "--guidance-scale", "1e39"),
    ("sample", "scenes", "--prompt", "a", "--out", "o", "--guidance-scale", "nan"),
    ("sample", "scenes", "--prompt", "a", "--out", "o", "--num-inference-steps", "1000000000"),
    ("sample", "scenes", "--prompt", "a", "--out", "o", "--height", "1000000000"),
    ("sample", "scenes", "--prompt", "a", "--out", "o", "--batch-size", "1000000000"),
    ("plan", "scenes_dmd", "--memory", "inf"),
    ("plan", "scenes_dmd", "--memory", "nan"),
    ("new", "scenes", "--out", "r.toml", "--memory", "1e300"),
    ("demo", "--seed", str(2**63)),
    ("demo", "--updates", "1000000000"),
    ("audit", "scenes", "--teacher", "scenes", "--sigmas", "1,nan"),
    ("audit", "scenes", "--teacher", "scenes", "--timesteps", "1e400"),
    ("compare", "scenes_dmd", "--budget", "1 steps", "--jobs", "1000000000"),
]


@pytest.mark.parametrize("arguments", OPTIONS)
def test_options_too_large_end_with_code_2_naming_the_option_and_write_nothing(
    tmp_path, monkeypatch, capsys, arguments
):
    from dpdmd import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dpdmd", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and arguments[-2] in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_the_bounds_need_no_library():
    code = "import sys, dpdmd.recipe.bounds; print(sorted({'torch', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    assert all(bounds.reason(limit) for limit in bounds.REASONS) and issubclass(Recipe, BaseModel)


@pytest.mark.parametrize("override", ['lora.roles=["student","student"]', 'output.trackers=["wandb","wandb"]'])
def test_a_name_given_twice_in_a_list_of_names_is_refused(recipe, override):
    with pytest.raises(ValueError, match=f"{override.partition('=')[0]} must name each only once"):
        load_recipe(recipe, [override])
