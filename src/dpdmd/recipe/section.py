"""What every table of a recipe is made of: strict tables, texts, and names of files."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from dpdmd.store.errors import require_text
from dpdmd.store.names import expanded


class Section(BaseModel):
    """One table of a recipe: unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _place(name: str) -> str:
    if "\0" in name or len(name) > 4096 or any(len(part.encode("utf-8", "replace")) > 255 for part in name.split("/")):
        raise ValueError("must be a name that a file can have: no NUL, at most 255 bytes between two slashes")
    return expanded(name)


def _text(text: str) -> str:
    require_text(text, "the text")
    return text.strip()


Text = Annotated[str, AfterValidator(_text)]
Place = Annotated[str, AfterValidator(_place)]  # a file or folder, or another name; ~ is the home folder
