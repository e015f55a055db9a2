"""Writing to what is no ordinary file: links, devices, pipes; and what killed processes leave behind."""

import os
import socket
import stat
import subprocess
import threading
import time

import pytest

from dpdmd.store import leftovers
from dpdmd.store.files import (
    atomic_folder,
    atomic_path,
    is_stream,
    make_folder,
    remove_folder,
    require_writable,
    write_json,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_link_is_written_through_and_stays(tmp_path):
    (tmp_path / "far").mkdir()
    link = tmp_path / "metrics.json"
    link.symlink_to("far/real.json")  # to nothing yet
    require_writable(link)
    for text in ("one", "two"):
        write_text(link, text)
        assert link.is_symlink() and (tmp_path / "far" / "real.json").read_text() == text
    assert names(tmp_path) == ["far", "metrics.json"] and names(tmp_path / "far") == ["real.json"]


def test_a_device_is_written_into_and_stays_a_device(tmp_path):
    before = os.stat("/dev/null")
    require_writable("/dev/null")
    write_json("/dev/null", {"loss": 1.0})
    after = os.stat("/dev/null")
    assert stat.S_ISCHR(after.st_mode) and (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    with pytest.raises(OSError, match="could not write into /dev/full: No space left on device"):
        write_text("/dev/full", "a")


def test_a_pipe_gets_the_content_and_one_that_nobody_reads_is_refused_at_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    started = time.monotonic()
    with pytest.raises(OSError, match=r"cannot write into .*pipe: nobody reads this pipe"):
        write_text(pipe, "text")
    assert time.monotonic() - started < 5
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    while not read and reader.is_alive():
        try:
            write_text(pipe, "text" * 50_000)  # more than a pipe holds
            break
        except OSError:
            time.sleep(0.01)  # the reader has not opened it yet
    reader.join(timeout=20)
    assert read == ["text" * 50_000] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_what_is_open_already_is_appended_to_as_a_shell_does(tmp_path):
    with (tmp_path / "log").open("w") as file:
        file.write("before\n")
        file.flush()
        place = f"/dev/fd/{file.fileno()}"
        assert is_stream(place) and not is_stream(tmp_path / "log")
        write_text(place, "after\n")
    assert (tmp_path / "log").read_text() == "before\nafter\n"


def test_a_folder_is_made_through_a_link_and_refused_where_it_cannot_be(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "file").write_text("mine")
    assert make_folder(tmp_path / "link" / "a" / "b").is_dir() and (tmp_path / "real" / "a" / "b").is_dir()
    for place in ("dangling", "file", "file/inside"):
        with pytest.raises(ValueError, match=f"--out .*{place} must be a folder"):
            make_folder(tmp_path / place, "--out")
    with pytest.raises(ValueError, match="--out /dev/null must be a folder"):
        make_folder("/dev/null", "--out")


def test_removing_a_link_to_a_folder_leaves_what_it_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "weights").write_text("mine")
    (tmp_path / "link").symlink_to("real")
    remove_folder(tmp_path / "link")
    remove_folder(tmp_path / "nowhere")
    assert names(tmp_path) == ["real"] and (tmp_path / "real" / "weights").read_text() == "mine"
    remove_folder(tmp_path / "real")
    assert names(tmp_path) == []


def test_everything_written_has_the_mode_of_other_new_files(tmp_path):
    before = os.umask(0o022)
    try:
        with atomic_folder(tmp_path / "export") as folder:
            (folder / "part").mkdir(mode=0o700)
            for path in (folder / "a", folder / "part" / "b"):
                path.touch(mode=0o600)
            os.link(folder / "a", tmp_path / "original")
        with atomic_path(tmp_path / "file") as temporary:
            temporary.unlink()
            temporary.touch(mode=0o600)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"export": 0o755, "part": 0o755, "b": 0o644, "a": 0o600, "original": 0o600, "file": 0o644}


def test_what_a_killed_process_began_is_removed_by_the_next_that_writes_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", dead_process)
    killed = tmp_path / leftovers.temporary_name("best", ".json")
    other = tmp_path / leftovers.temporary_name("worst", ".json")
    monkeypatch.undo()
    running = tmp_path / leftovers.temporary_name("best", ".json")
    for path in (killed, other, running):
        path.write_text("half")
    write_json(tmp_path / "best.json", {})
    assert {path.name for path in tmp_path.iterdir()} == {"best.json", other.name, running.name}
    leftovers.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"best.json", running.name}


def test_what_another_machine_or_an_older_version_may_be_writing_stays_for_an_hour(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", dead_process)
    monkeypatch.setattr(socket, "gethostname", lambda: "another machine")
    names = [leftovers.temporary_name("a", ".json"), ".a.01234567.tmp.json"]
    monkeypatch.undo()
    kept = [".a.tmp.json", "a.01234567.tmp.json"]  # other people's
    for name in [*names, *kept]:
        (tmp_path / name).write_text("half")
    leftovers.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names, *kept}
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 3700,) * 2)
    leftovers.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_alone_in_a_folder_everything_that_no_process_here_writes_is_removed(tmp_path):
    inner = tmp_path / "students" / "best"
    inner.mkdir(parents=True)
    (inner / ".best.01234567.tmp.json").write_text("half")
    (inner / ".step-000002.01234567.tmp").mkdir()
    (inner / leftovers.temporary_name("best", ".json")).write_text("half")
    leftovers.remove_leftovers(tmp_path, alone=True, deep=True)
    assert len(names(inner)) == 1 and f"-{os.getpid()}-" in names(inner)[0]


def test_long_names_can_be_written(tmp_path):
    name = "ü" * 120 + ".json"  # 245 of 255 bytes
    write_json(tmp_path / name, [])
    assert names(tmp_path) == [name]
