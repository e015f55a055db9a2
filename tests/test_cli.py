"""The command line: what reaches the library, and what a user sees when something is wrong."""

import os
import subprocess
import sys
import tomllib
import types
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from dpdmd import cli
from dpdmd.compare.arms import Budget
from dpdmd.evaluate.stock import Call

RECIPE = '[model]\nteacher = "scenes"\n[data]\nprompts = "scenes"\n[output]\nfolder = "{folder}"\n'
COMMANDS = [
    "train",
    "plan",
    "config",
    "sample",
    "evaluate",
    "audit",
    "report",
    "compare",
    "export",
    "demo",
]


@pytest.fixture
def run(monkeypatch, capsys):
    """Call `dpdmd ARGUMENTS`; returns exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)
        monkeypatch.setattr(sys, "argv", ["dpdmd", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        return exit_info.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(folder=tmp_path / "run"))
    return path


@pytest.fixture
def called(monkeypatch):
    """Replace functions of modules that may be heavy by ones that note how they were called."""
    calls = {}

    def replace(module: str, function: str, result=None):
        def noted(*args, **options):
            calls[function] = (args, options)
            return result

        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{function: noted}))

    calls["replace"] = replace
    return calls


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: dpdmd {command}" in out


def test_a_dry_run_prints_the_plan_and_trains_nothing(run, tmp_path):
    code, out, _ = run("train", "scenes_dp_dmd", "--dry-run", "--set", f"output.folder={tmp_path / 'run'}")
    assert code == 0 and not (tmp_path / "run").exists()
    lines = dict(line.split("  ", 1) for line in out.splitlines() if "  " in line)
    assert lines["student grid"].strip() == "1, 0.75, 0.5, 0.25, 0"
    assert lines["anchor"].strip() == "15 teacher steps in 4, to t = 0.7380"
    assert "2,297,104 parameters, predicts velocity" in lines["network"]
    assert lines["one update"].strip().startswith("11 forward and 2.5 backward network calls per sample, 32 samples")
    assert "\nprompts: 4096, " in out and "\ntime: " in out and "fits in" in out.splitlines()[-1]
    code, _, err = run("train", "scenes_dp_dmd", "--dry-run", "--set", "model.height=36", "--set", "model.width=32")
    assert code == 2 and "height must be divisible by 8" in err and "nearest: " in err


def test_a_tracker_that_is_not_installed_is_one_message_before_the_model_is_looked_at(run, monkeypatch):
    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("dpdmd.training.run.trackers.version", version)
    monkeypatch.setattr("dpdmd.models.load.load_adapter", lambda source: pytest.fail("looked at the model"))
    code, _, err = run("train", "scenes_dp_dmd", "--set", 'output.trackers=["tensorboard"]')
    assert code == 2
    assert err == 'error: output.trackers names tensorboard, which is not installed: pip install "dpdmd[tensorboard]"\n'


def test_importing_the_command_line_loads_nothing_heavy():
    heavy = {"accelerate", "diffusers", "matplotlib", "pydantic", "transformers"}
    code = f"import sys, dpdmd.cli; print(sorted({heavy} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


def test_config_prints_a_template_of_every_key(run):
    code, out, _ = run("config")
    assert code == 0
    assert "num_steps = 4 " in out
    filled = out.replace("= ...", '= "x"')
    assert set(tomllib.loads(filled)) == {
        "model", "student", "objective", "data", "train", "lora", "validation", "checkpoint", "output",
    }  # fmt: skip


def test_config_prints_the_resolved_recipe(run, recipe):
    code, out, _ = run("config", recipe, "--set", "student.num_steps=2", "--set", "objective.anchor.weight=1")
    resolved = tomllib.loads(out)
    assert code == 0
    assert resolved["student"]["num_steps"] == 2
    assert resolved["objective"]["anchor"]["weight"] == 1
    assert resolved["train"]["learning_rate"] == 1e-5


def test_a_mistake_in_a_recipe_is_one_message_without_traceback(run, recipe):
    code, out, err = run("train", recipe, "--set", "train.lerning_rate=1")
    assert code == 2
    assert err.startswith("error: ")
    assert "did you mean train.learning_rate?" in err
    assert "Traceback" not in out + err


def test_debug_shows_the_traceback(monkeypatch, recipe):
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "")
    monkeypatch.setattr(sys, "argv", ["dpdmd", "--debug", "config", "nowhere.toml"])
    with pytest.raises(ValueError, match=r"no recipe file nowhere\.toml"):
        cli.main()


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    def broken():
        raise TypeError("ours")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(TypeError, match="ours"):
        cli.main()


def test_sample_counts_seeds_up_and_joins_prompts(run, called, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a ring\n# no\na red circle\n")
    called["replace"]("dpdmd.evaluate.generate", "generate_folder")
    code, _, _ = run(
        "sample", "runs/x", "--prompt", "a red circle", "--prompts", file, "--images-per-prompt", 3, "--seed", 5,
        "--out", tmp_path / "images", "--guidance-scale", 2,
    )  # fmt: skip
    args, options = called["generate_folder"]
    assert code == 0
    assert args == ("runs/x", ["a red circle", "a ring"])
    assert options == {
        "out": tmp_path / "images",
        "seeds": [5, 6, 7],
        "num_inference_steps": None,
        "guidance_scale": 2.0,
        "negative_prompt": None,
        "loras": [],
        "teacher_first": False,
        "height": None,
        "width": None,
        "batch_size": 32,
    }


def test_sample_without_a_prompt_is_an_error(run, tmp_path):
    code, _, err = run("sample", "runs/x", "--out", tmp_path / "images")
    assert (code, err) == (2, "error: there are no prompts: give --prompt TEXT or --prompts FILE\n")


def test_evaluate_passes_its_arguments_on_and_prints_figures_with_intervals(run, monkeypatch, tmp_path):
    seen = {}

    def evaluate_folder(*args, **options):
        seen["args"], seen["options"] = args, options
        return {
            "diversity": 0.25, "intervals": {"diversity": [0.2, 0.3]}, "skipped": {"kid": "too few"}, "provenance": {},
            "further_features": {"other": {"diversity": 0.5, "intervals": {}}},
        }  # fmt: skip

    monkeypatch.setattr("dpdmd.evaluate.run.evaluate_folder", evaluate_folder)
    monkeypatch.setenv("DPDMD_CACHE", str(tmp_path))
    code, out, _ = run("evaluate", "images", "--reference", "teacher", "--out", tmp_path / "m.json")
    options = {
        "reference": Path("teacher"), "further_sizes": [], "features": "auto", "perceptual": None, "quality": [],
        "out": tmp_path / "m.json", "cache": tmp_path / "images",
    }  # fmt: skip
    assert code == 0 and seen == {"args": (Path("images"),), "options": options}
    assert "Diversity\n  diversity  0.25  [0.20, 0.30]\nleft out: kid: too few\n\nMeasured with other:" in out
    assert (
        run("evaluate", "images", "--features", "a", "--features", "b", "--quality", "hps_v21=w", "--no-cache")[0] == 0
    )
    assert seen["options"]["features"] == ["a", "b"] and seen["options"]["quality"] == ["hps_v21=w"]
    assert seen["options"]["cache"] is None
    code, _, err = run("evaluate", "images", "--no-cache", "--cache", "x")
    assert code == 2 and "exclude each other" in err


def test_report_export_pretrain_and_demo_pass_their_arguments_on(run, called, tmp_path):
    called["replace"]("dpdmd.report.build", "report_from_runs", "r.html")
    assert run("report", "a", "b", "--out", "r.html")[0] == 0
    assert called["report_from_runs"] == (([Path("a"), Path("b")], Path("r.html")), {})

    called["replace"]("dpdmd.publish.export", "export_run")
    assert run("export", "a", "--out", "b")[0] == 0
    options = {
        "lora": False, "alone": False, "dtype": None, "one_file": False, "link": False, "metrics": None,
        "license": None, "repo_id": None,
    }  # fmt: skip
    assert called["export_run"] == ((Path("a"), Path("b")), options)
    assert run("export", "a", "--out", "b", "--metrics", "m.json", "--license", "mit")[0] == 0
    assert called["export_run"][1] == options | {"metrics": Path("m.json"), "license": "mit"}
    assert run("export", "a", "--out", "b", "--dtype", "bf16", "--one-file", "--link")[0] == 0
    assert called["export_run"][1] == options | {"dtype": "bf16", "one_file": True, "link": True}

    code, _, err = run("export", "a", "--out", "b", "--private")
    assert code == 2 and "--private needs an upload" in err

    called["replace"]("dpdmd.demo", "run_demo")
    assert run("demo", "--updates", 3, "--no-open")[0] == 0
    assert called["run_demo"] == ((Path("runs/demo"),), {"updates": 3, "seed": 0, "open_browser": False})


def test_compare_reads_seeds_budget_and_guidance(run, called, tmp_path):
    called["replace"]("dpdmd.compare.engine", "compare_recipes")
    code, _, err = run("compare", "scenes_dmd", "--budget", "10 minutes")
    assert code == 2 and "--budget must be like" in err
    assert run("compare", "scenes_dmd", "--budget", "9 steps", "--seeds", "a")[0] == 2
    assert "compare_recipes" not in called
    file = tmp_path / "prompts.txt"
    file.write_text("a ring\na ring\n")
    code, _, _ = run(
        "compare", "scenes_dmd", "scenes_dp_dmd:train.warmup=2", "--name", "a", "--name", "b", "--seeds", "0-1,4",
        "--budget", "600 seconds", "--out", tmp_path / "out", "--jobs", 2, "--set", "train.batch_size=2",
        "--guidance", "2,1", "--prompts", file, "--images-per-prompt", 4, "--batch-size", 8,
    )  # fmt: skip
    assert code == 0
    assert called["compare_recipes"] == (
        (["scenes_dmd", "scenes_dp_dmd:train.warmup=2"], tmp_path / "out"),
        {
            "names": ["a", "b"],
            "seeds": [0, 1, 4],
            "budget": Budget(600, "seconds"),
            "sets": ["train.batch_size=2"],
            "guidance": [1, 2],
            "prompts": ["a ring"],
            "images_per_prompt": 4,
            "features": "auto",
            "batch_size": 8,
            "jobs": 2,
        },
    )


def test_the_noise_predicting_teacher_has_a_recipe(run, tmp_path):
    code, out, _ = run("train", "scenes_eps_dp_dmd", "--dry-run", "--set", f"output.folder={tmp_path / 'run'}")
    lines = dict(line.split("  ", 1) for line in out.splitlines() if "  " in line)
    assert code == 0 and "3,496,356 parameters, predicts eps" in lines["network"]
    assert lines["student grid"].strip() == "1, 0.75, 0.5, 0.25, 0"
    assert lines["anchor"].strip() == "8 teacher steps in 3, to t = 0.7330"
    # The x0 target takes one guided call more than the secant, and the way to it one less.
    assert lines["one update"].strip().startswith("11 forward and 2.5 backward network calls per sample, 32 samples")


def test_audit_passes_its_arguments_on(run, called, tmp_path):
    called["replace"]("dpdmd.audit", "audit", tmp_path / "report.html")
    (tmp_path / "prompts.txt").write_text("a ring\na ring\n")
    code, out, _ = run(
        "audit", "them/fast", "--teacher", "them/slow", "--prompts", tmp_path / "prompts.txt", "--out", tmp_path,
        "--num-inference-steps", 4, "--guidance-scale", 0, "--quality", "clip_score",
    )  # fmt: skip
    args, options = called["audit"]
    assert code == 0 and out == f"report: {tmp_path / 'report.html'}\n"
    assert args == ("them/fast", "them/slow")
    assert options == {
        "out": tmp_path, "prompts": ["a ring"], "images_per_prompt": 9,
        "call": Call(num_inference_steps=4, guidance_scale=0), "teacher_call": Call(), "teacher_loras": None,
        "features": "auto", "perceptual": None, "quality": ["clip_score"], "batch_size": 32,
    }  # fmt: skip
    assert run(
        "audit", "them/fast", "--teacher", "them/slow", "--negative-prompt", "", "--scheduler", "LCMScheduler",
        "--timesteps", "999,499", "--teacher-num-inference-steps", 30, "--teacher-guidance-scale", 2,
        "--teacher-negative-prompt", "ugly", "--teacher-scheduler", "x/y",
    )[0] == 0  # fmt: skip
    _, options = called["audit"]
    assert options["call"] == Call(negative_prompt="", scheduler="LCMScheduler", timesteps=(999, 499))
    assert options["teacher_call"] == Call(30, 2, "ugly", "x/y")
    assert run("audit", "a", "--teacher", "b", "--sigmas", "1,0.5")[0] == 0
    assert called["audit"][1]["call"] == Call(sigmas=(1.0, 0.5))
    code, _, err = run("audit", "a", "--teacher", "b", "--sigmas", "1,x")
    assert code == 2 and "--sigmas must be numbers separated by commas, got '1,x'" in err
    assert run("audit", "a", "--teacher", "b", "--sigmas", "1", "--timesteps", "9")[0] == 2


EMPTY = [
    ("sample", "scenes", "--prompt", "a red circle", "--out", ""),
    ("evaluate", "images", "--out="),
    ("audit", "scenes", "--teacher", "scenes", "--out", " "),
    ("report", ""),
    ("report", "run", "--out", ""),
    ("compare", "scenes_dmd", "--out", ""),
    ("export", "run", "--out", ""),
    ("new", "scenes", "--out", ""),
    ("demo", "--out", ""),
]


@pytest.mark.parametrize("arguments", EMPTY, ids=lambda arguments: arguments[0])
def test_an_empty_name_is_not_the_working_directory(arguments, run, tmp_path, monkeypatch):
    """It is mostly a variable that a script did not set."""
    monkeypatch.chdir(tmp_path)
    code, _, error = run(*arguments)
    assert code == 2 and "the name is empty" in error
    assert not list(tmp_path.iterdir())


def test_an_empty_name_of_a_model_is_no_hub_id(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (("sample", "", "--prompt", "a", "--out", "o"), ("export", "", "--out", "o"), ("audit", "")):
        code, _, error = run(*arguments, *(["--teacher", "scenes"] if arguments[0] == "audit" else []))
        assert code == 2 and "a name is empty" in error
    assert run("new", "", "--out", "my.toml")[0] == 2
    assert not list(tmp_path.iterdir())


def test_the_home_folder_is_meant_where_a_shell_leaves_the_tilde(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    run("new", "scenes", "--out=~/my.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert (tmp_path / "home" / "my.toml").is_file()
