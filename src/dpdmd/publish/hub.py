"""Upload an export to the hub."""

import shlex
from pathlib import Path


def require_login(repo_id: str) -> None:
    """Check, before an export, that it can be uploaded to `repo_id`.

    Raises ValueError unless `repo_id` is OWNER/NAME, and unless there is a token that the hub does not reject. An
    unreachable hub is not an error at this point: the export does not need it, and is kept if the upload fails.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        is_valid = False
    else:
        is_valid = "/" in repo_id
    if not is_valid:
        raise ValueError(f"--push-to-hub must be OWNER/NAME, made of letters, digits and -_., got {repo_id!r}")
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError:
        raise ValueError("--push-to-hub needs a login: run `hf auth login` or set HF_TOKEN") from None
    except (HTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 401:
            raise ValueError("huggingface.co rejects your token: log in again with `hf auth login`") from None


def push_folder(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a folder to a model repository, which is created if it does not exist; returns its URL.

    private: make a new repository private.
    Raises OSError, in one sentence, if the upload fails, or if `private` is set and a public repository exists.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise ValueError("the repository exists already and is public")
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload by dpdmd export")
    # The hub's storage client reports a failed transfer as RuntimeError.
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        command = shlex.join(["hf", "upload", repo_id, str(folder), ".", *(["--private"] if private else [])])
        raise OSError(
            f"{folder} was written, but not uploaded to {repo_id}: {reason}; when this is solved, run `{command}`"
        ) from None
    return str(url)
