"""Uploads: nothing begins without a token, the export comes first and stays whatever the hub does."""

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

from dpdmd import cli
from dpdmd.publish.hub import push_folder, require_login

URL = "https://huggingface.co/me/student"


@pytest.fixture
def hub(monkeypatch):
    """A hub that records its calls; `hub.fails[NAME]` is what a call raises instead."""
    hub = SimpleNamespace(calls=[], fails={}, is_private=True)

    class Api:
        def __getattr__(self, name):
            def call(*args, **options):
                hub.calls.append((name, args, options))
                if name in hub.fails:
                    raise hub.fails[name]
                if name == "upload_folder":
                    hub.uploaded = sorted(path.name for path in options["folder_path"].iterdir())
                return {"create_repo": URL, "model_info": SimpleNamespace(private=hub.is_private)}.get(name)

            return call

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return hub


@pytest.fixture
def export(monkeypatch, tmp_path, capsys):
    """`dpdmd export run --out OUT ...` with an export that only writes a card; returns exit code, stdout, stderr."""

    def write(run, out, **options):
        out.mkdir()
        (out / "README.md").write_text(str(options["repo_id"]))

    def call(*arguments):
        monkeypatch.setattr("dpdmd.publish.export.export_run", write)
        monkeypatch.setattr("sys.argv", ["dpdmd", "export", "run", "--out", str(tmp_path / "out"), *arguments])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        return exit_info.value.code or 0, captured.out, captured.err

    return call


def refused(status: int) -> HfHubHTTPError:
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError(f"{status} Client Error.\n\nMore on it.", response=response)


@pytest.mark.parametrize("private", [False, True])
def test_the_finished_export_is_uploaded_and_its_address_printed(private, hub, export, tmp_path):
    code, out, _ = export("--push-to-hub", "me/student", *(["--private"] if private else []))
    assert code == 0 and out == f"pipeline: {tmp_path / 'out'}\nhub: {URL}\n"
    calls = {name: (args, options) for name, args, options in hub.calls}
    assert list(calls) == ["whoami", "create_repo", *(["model_info"] if private else []), "upload_folder"]
    assert calls["create_repo"] == (("me/student",), {"private": private or None, "exist_ok": True})
    _, options = calls["upload_folder"]
    assert options["repo_id"] == "me/student" and options["folder_path"] == tmp_path / "out"
    assert hub.uploaded == ["README.md"] and (tmp_path / "out" / "README.md").read_text() == "me/student"


def test_without_the_option_the_hub_hears_nothing(hub, export):
    assert export()[0] == 0 and hub.calls == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalTokenNotFoundError("long advice"), "error: --push-to-hub needs a login: run `hf auth login`"),
        (refused(401), "error: huggingface.co rejects your token"),
    ],
)
def test_without_a_valid_token_nothing_begins(error, message, hub, export, tmp_path):
    hub.fails["whoami"] = error
    code, _, err = export("--push-to-hub", "me/student")
    assert code == 2 and err.startswith(message) and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["student", "me/my student", "a/b/c", ""])
def test_a_repository_needs_an_owner_and_a_name(name, hub):
    with pytest.raises(ValueError, match="must be OWNER/NAME"):
        require_login(name)
    assert hub.calls == []


@pytest.mark.parametrize("step", ["create_repo", "upload_folder"])
@pytest.mark.parametrize(
    "error", [HTTPError("no\nnetwork"), OSError("no\nnetwork"), RuntimeError("no\nnetwork"), refused(403)]
)
def test_when_the_upload_fails_one_sentence_says_so_and_the_export_stays(step, error, hub, export, tmp_path):
    hub.fails |= {"whoami": HTTPError("no network"), step: error}
    code, out, err = export("--push-to-hub", "me/student")
    assert code == 1 and err.count("\n") == 1 and "Traceback" not in err
    assert f"{tmp_path / 'out'} was written, but not uploaded to me/student: {' '.join(str(error).split())}" in err
    assert f"`hf upload me/student {tmp_path / 'out'} .`" in err
    assert "pipeline: " in out and "hub: " not in out
    assert (tmp_path / "out" / "README.md").is_file()


def test_a_private_student_is_not_uploaded_to_a_public_repository(hub, tmp_path):
    hub.is_private = False
    with pytest.raises(OSError, match=r"exists already and is public.*--private"):
        push_folder(tmp_path, "me/student", private=True)
    assert "upload_folder" not in [name for name, _, _ in hub.calls]
