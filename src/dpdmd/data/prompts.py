"""Prompt lists: a text file, or the built-in world's captions."""

from pathlib import Path

BUILT_IN = "scenes"


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a UTF-8 text file, one per line, in order; blank lines and lines starting with # are left out.

    Raises ValueError when the file is missing, not UTF-8, or holds no prompt.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"cannot read the prompts {path}: {error.strerror}") from None
    # Not splitlines(): it also splits at characters such as U+2028 that may stand inside a prompt.
    lines = [line.strip() for line in text.replace("\r\n", "\n").split("\n")]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"{path} holds no prompt: one per line, # starts a comment")
    return prompts


def training_prompts(source: str) -> list[str]:
    """The prompts a recipe's `data.prompts` names: "scenes" or a text file. Raises ValueError as `read_prompts`."""
    if source == BUILT_IN:
        from dpdmd.world.prompts import training_prompts as scenes_prompts

        return scenes_prompts()
    return read_prompts(source)
