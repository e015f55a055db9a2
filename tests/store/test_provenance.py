"""A result says by which command it was made, in words that work on another machine."""

import runpy
import sys
import types

from dpdmd.store.provenance import own_command


def test_a_command_is_written_without_the_folders_of_this_machine(monkeypatch):
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/dpdmd", "train", "my.toml"])
    main.__file__, main.__spec__ = "/somewhere/bin/dpdmd", None
    assert own_command() == ["dpdmd", "train", "my.toml"]


def test_a_module_is_written_as_it_is_run(tmp_path, monkeypatch):
    package = tmp_path / "studies"
    package.mkdir()
    code = "from dpdmd.store.provenance import own_command\ncommand = own_command()\n"
    for name in ("__main__", "one"):
        (package / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["replaced by runpy", "--seed", "1"])
    for name in ("studies", "studies.one"):
        found = runpy.run_module(name, run_name="__main__", alter_sys=True)["command"]
        assert found == ["python", "-m", name, "--seed", "1"]
