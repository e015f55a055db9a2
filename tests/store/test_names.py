"""Names of files, folders and things on the hub: what is a path, and what a mistyped one probably means."""

import pytest
from huggingface_hub import constants

from dpdmd.store import names
from dpdmd.store.names import did_you_mean, expanded, local_or_hub_id


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, also the working directory, with the students of one run."""
    for name in ("runs/demo/dp_dmd/student", "runs/demo/dmd/student"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("runs/demo/dp_dmd/studnet", "runs/demo/dp_dmd/student"),
        ("./runs/demo/dpdmd", "runs/demo/dp_dmd"),
        ("rusn/demoo/dp_dmd/student", "runs/demo/dp_dmd/student"),
        ("runs/deom", "runs/demo"),
        ("./xyz", None),
        ("/abs/nothing", None),
        ("~/run", "{home}/runs"),
        ("a/b/c", None),
        ("run/", "runs"),
        ("lora.safetensors", None),
    ],
)
def test_a_path_that_is_not_there_is_refused_with_the_nearest_that_is(home, name, meant):
    with pytest.raises(ValueError) as error:
        local_or_hub_id(name)
    reason = " (not looked up on the hub, since runs/ is a folder here)" if name == "runs/deom" else ""
    hint = "" if meant is None else f"; did you mean {meant.format(home=home)}?"
    assert str(error.value) == f"{name} does not exist{hint}{reason}"


@pytest.mark.parametrize("name", ["facebook/dinov2-base", "scenes", "gpt2", "runs/demo", "./runs", "demo/runs"])
def test_what_is_there_and_what_may_be_a_hub_id_is_taken_as_it_is(home, name):
    assert local_or_hub_id(name) == name


def test_the_home_folder_is_written_out(home):
    assert local_or_hub_id("~/runs") == expanded("~/runs") == f"{home}/runs"
    assert expanded("a/~/b") == "a/~/b"


def test_only_what_is_missing_has_a_nearest_name(home):
    (home / "prompts.txt").touch()
    assert did_you_mean("prompt.txt") == "; did you mean prompts.txt?"
    assert did_you_mean("prompts.txt/x") == did_you_mean("prompts.txt") == ""


@pytest.mark.parametrize(
    ("proxies", "known", "offline"), [({}, True, False), ({}, False, True), ({"https": "p"}, False, False)]
)
def test_where_the_hub_has_no_address_only_the_cache_is_asked(proxies, known, offline, home, monkeypatch):
    """Otherwise each name would take half a minute, with five tries."""
    asked = []

    def address(host, port):
        asked.append(host)
        if not known:
            raise OSError("no such name")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(names, "getproxies", lambda: proxies)
    monkeypatch.setattr(names.socket, "getaddrinfo", address)
    names._stay_offline_without_hub.cache_clear()
    for _ in range(2):
        assert local_or_hub_id("me/model") == "me/model"
        assert local_or_hub_id("scenes") == "scenes"
    assert constants.is_offline_mode() == offline
    assert asked == ([] if proxies else ["huggingface.co"])
    names._stay_offline_without_hub.cache_clear()
