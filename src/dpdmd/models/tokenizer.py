"""Load the tokenizers of a pipeline: transformers makes one of two tokens where the vocabulary is missing."""

from pathlib import Path
from typing import Any

from dpdmd.store.errors import InputError, reading
from dpdmd.store.messages import without_loading_bars

UNLIMITED = 10**6  # transformers writes 1e30 where a tokenizer's maximum length is not known
WHOLE = ("tokenizer.json", "tokenizer.model", "spiece.model")  # each has the vocabulary with all that belongs to it
EVERY_KEY = "tokenizer_file"  # the name under which a class lists tokenizer.json, which replaces its other files


def load_tokenizer(tokenizer_class: Any, source: str, name: str, *, named: str = "") -> Any:
    """The tokenizer in the folder `name` of a model, `named` in errors if not by its folder.

    Raises ValueError if it cannot be read or has no vocabulary.
    """
    folder = Path(source, name)
    if Path(source).is_dir():
        files = {key: file for key, file in tokenizer_class.vocab_files_names.items() if key != EVERY_KEY}
        missing = [file for file in files.values() if not (folder / file).is_file()]
        if not any((folder / file).is_file() for file in WHOLE) and (missing or not files):
            raise InputError(
                f"{named or source}: cannot read its {name or 'tokenizer'}: {folder} has neither tokenizer.json nor "
                f"{' and '.join(missing) or 'another vocabulary'}"
            )
    with reading(named or source, name or "tokenizer"), without_loading_bars():
        return tokenizer_class.from_pretrained(source, subfolder=name, trust_remote_code=False)


def require_fit(components: dict[str, Any], source: str) -> None:
    """Tokenizers that do not say their maximum length get the number of positions of their text encoders.

    components: of a pipeline, by name. Raises ValueError for a tokenizer with more tokens than its encoder knows.
    """
    for name, tokenizer in components.items():
        if not name.startswith("tokenizer") or tokenizer is None:
            continue
        encoder = components.get(name.replace("tokenizer", "text_encoder"))
        if encoder is None:
            continue
        config = encoder.config
        positions = getattr(config, "max_position_embeddings", None)
        if tokenizer.model_max_length > UNLIMITED and positions is not None:
            tokenizer.model_max_length = positions
        known = encoder.get_input_embeddings().num_embeddings
        if tokenizer.vocab_size > known:
            raise InputError(
                f"{source}: its {name} has {tokenizer.vocab_size} tokens and its text encoder knows {known}: they do "
                "not belong together"
            )
