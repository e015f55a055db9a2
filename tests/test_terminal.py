"""What a person sees in a terminal: help, completion, start-up, how a training ends, and scores in words."""

import os
import re
import shlex
import subprocess
import sys
from contextlib import suppress

import pytest

from dpdmd import cli
from dpdmd.evaluate.in_words import lines
from dpdmd.store import messages
from dpdmd.store.progress import tracked

DPDMD = [sys.executable, "-m", "dpdmd"]
QUICK = (["--help"], ["--version"], ["config"], ["recipes"])


def output(*arguments, **environment):
    done = subprocess.run(
        [*DPDMD, *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    return done.stdout


def cpu_seconds(command):
    """CPU time of a process: how long it would take on a machine of its own."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_help_shows_the_whole_summary_of_every_command():
    words = " ".join(output("--help", COLUMNS="80").split())
    for module in (cli.training, cli.images, cli.runs, cli.demo):
        for command in module.app.registered_commands:
            summary = command.callback.__doc__.strip().split("\n\n")[0]
            assert " ".join(summary.split()) in words
    assert "..." not in words.partition("Commands:")[2] and "--install-completion" in words


def test_a_shell_completes_the_names_of_commands():
    words = {"_DPDMD_COMPLETE": "complete_bash", "COMP_WORDS": "dpdmd ev", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['dpdmd']; from dpdmd.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | words, capture_output=True, text=True)
    assert done.stdout.split() == ["evaluate"]


def test_commands_that_need_no_network_start_in_half_the_time_of_importing_torch():
    torch = cpu_seconds([sys.executable, "-c", "import torch"])
    for arguments in QUICK:
        own = cpu_seconds([*DPDMD, *arguments])
        assert own < 0.5 * torch, (arguments, own, torch)


def test_quiet_shows_no_progress_and_only_warnings(monkeypatch, capsys):
    monkeypatch.setenv(messages.LEVEL_VARIABLE, messages.QUIET)
    list(tracked(range(3), "x", 3, unit="image"))
    assert capsys.readouterr().err == ""
    code = (
        "import logging; from dpdmd.store.messages import show_messages; show_messages(); "
        "log = logging.getLogger('dpdmd.x'); log.info('news'); log.warning('trouble')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["trouble"]


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "no_such_recipe"], ["new", "scenes", "--out", "my.toml"]])
def test_a_terminal_that_wants_no_colours_gets_none(arguments, tmp_path):
    ours, theirs = os.openpty()
    environment = os.environ | {"NO_COLOR": "1", "TERM": "xterm-256color"}
    subprocess.run([*DPDMD, *arguments], env=environment, cwd=tmp_path, stdout=theirs, stderr=theirs, timeout=120)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the end of a terminal that nobody writes to any more
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert shown and not re.search(rb"\x1b\[[0-9;]*m", shown)


def test_quiet_and_verbose_exclude_each_other():
    done = subprocess.run([*DPDMD, "--quiet", "--verbose", "recipes"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --quiet and --verbose exclude each other")


def test_scores_are_told_in_words_and_diversity_comes_first():
    metrics = {
        "num_prompts": 24, "images_per_prompt": 9, "saturation": 0.0123, "frechet_reliable": True, "frechet": 0.2146,
        "validity": 0.9479, "diversity_share": 0.8857, "new_score": 3.0, "per_prompt": [],
        "intervals": {"diversity_share": [0.8297, 0.9419]}, "skipped": {"KID": "one image"},
        "further_features": {"net": {"diversity_share": 0.5}},
    }  # fmt: skip
    found = lines(metrics)
    assert found[0] == "24 prompts, 9 images each; in brackets 95 % intervals over prompts"
    assert found[2:4] == ["Diversity", "  diversity kept    89 %  [83 %, 94 %]"]
    text = "\n".join(found)
    assert "  Frechet distance  0.215  (lower is better)" in text and "left out: KID: one image" in text
    assert "clean images      95 %  (higher is better)" in text and "Other\n  new score         3.00" in text
    assert not re.search(r"[a-z]_[a-z]|frechet_reliable", text)
    assert found[-2:] == ["Diversity", "  diversity kept  50 %"]


@pytest.mark.slow
def test_a_training_ends_with_commands_that_work_as_printed(tmp_path):
    settings = ["train.num_updates=2", "train.batch_size=2", "validation.every=1", "validation.num_seeds=2"]
    folder = tmp_path / "my run"
    sets = [part for setting in [*settings, f"output.folder={folder}"] for part in ("--set", setting)]
    out = output("train", "scenes_dp_dmd", *sets)
    assert f"made: {folder}/student, a student of 4 steps, by 2 updates in " in out and "best in validation: " in out
    commands = [line.strip() for line in out.partition("go on with:\n")[2].splitlines()]
    assert [shlex.split(command)[1] for command in commands] == ["sample", "report", "export"]
    for command in commands:
        done = subprocess.run([*DPDMD, *shlex.split(command)[1:]], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (command, done.stderr)
    assert (folder / "report.html").is_file() and (tmp_path / "my run_export/model_index.json").is_file()
