"""Commands outlast what reads their output, and show what a terminal can show."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dpdmd import cli
from dpdmd.cli.streams import lasting_streams, printable

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
CODE = """
import sys
from dpdmd.cli.streams import lasting_streams
with lasting_streams():
    for number in range(20000):
        print("line", number)
        print("line", number, file=sys.stderr)
    open(sys.argv[1], "w").write("went on")
"""


def test_control_characters_are_shown_as_escapes():
    assert printable("a\x1b[2Jb\x00\x9b\n\tü") == "a\\x1b[2Jb\\x00\\x9b\n\tü"


@pytest.mark.parametrize("redirect", ["| head -1", "2>&1 | head -1", ">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full 2>&1"])
def test_a_command_goes_on_when_nobody_reads_it(tmp_path, redirect):
    out = tmp_path / "out"
    line = f"{sys.executable} -c '{CODE}' {out} {redirect}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, out.read_text()) == (0, "went on")
    assert "Exception" not in done.stderr and "Error" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_a_terminal_cannot_show_is_escaped(encoding):
    code = "from dpdmd.cli.streams import lasting_streams\nwith lasting_streams(): print('图 ü \\x1b[2J')"
    environment = ENVIRONMENT | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60)
    u = b"\\xfc" if encoding == "ascii" else b"\xfc"
    assert done.returncode == 0 and done.stdout == b"\\u56fe " + u + b" \\x1b[2J\n"


def test_streams_are_put_back():
    before = sys.stdout, sys.stderr
    with pytest.raises(RuntimeError), lasting_streams():
        assert sys.stdout is not before[0]
        raise RuntimeError
    assert (sys.stdout, sys.stderr) == before


def test_writing_to_a_broken_stream_loses_only_the_text(monkeypatch):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            raise OSError

    monkeypatch.setattr(sys, "stdout", Broken())
    with lasting_streams():
        assert print("lost") is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("a"), 2),
        (FileNotFoundError(2, "No such file"), 2),
        (IsADirectoryError(21, "Is a directory"), 2),
        (NotADirectoryError(20, "Not a directory"), 2),
        (OSError(36, "File name too long"), 2),
        (OSError(40, "Too many levels of symbolic links"), 2),
        (PermissionError(13, "Permission denied"), 1),
        (OSError(28, "No space left on device"), 1),
        (FloatingPointError("inf"), 1),
    ],
)
def test_exit_codes_say_who_can_mend_it(error, code):
    assert cli._exit_code(error) == code


def test_an_error_that_names_control_characters_shows_them_as_escapes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dpdmd", "config", "no\x1b[2Jwhere.toml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr().err
    assert ended.value.code == 2 and "\x1b" not in shown and "no\\x1b[2Jwhere.toml" in shown


@pytest.mark.parametrize(
    ("command", "said"), [("sample", "interrupted; the same command continues\n"), ("export", "interrupted\n")]
)
def test_ctrl_c_says_in_one_line_whether_the_command_continues(command, said, monkeypatch, capsys, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("dpdmd.evaluate.generate.generate_folder", interrupt)
    monkeypatch.setattr("dpdmd.publish.export.export_run", interrupt)
    prompt = ["--prompt", "a"] if command == "sample" else []
    monkeypatch.setattr(sys, "argv", ["dpdmd", command, "scenes", *prompt, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130 and capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "could not write into /dev/full: No space left on device"), "could not write into /dev/full: No"),
        (PermissionError(13, "Permission denied", "vae/config.json"), "Permission denied: vae/config.json"),
        (OSError("this machine has not enough memory"), "this machine has not enough memory"),
    ],
)
def test_an_error_of_the_system_is_said_without_its_number(error, said, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_signals_that_stop_have_the_exit_codes_of_a_shell():
    from dpdmd.store.errors import StoppedBySignal
    from dpdmd.training.run.signals import STOPPING

    codes = {signum: StoppedBySignal(signum, "stopped").exit_code for signum in STOPPING}
    assert codes == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 138}
