"""Prompt embeddings on disk: computed once for all runs with the same text encoders, then read by memory map.

    FOLDER/ENCODERS-DTYPE/SHA256.safetensors

ENCODERS identifies the text encoders by content. A file holds up to 256 prompts (`store.tensor_store.TensorGroups`), so
that runs may share the folder and write to it at the same time, and damaged files are found and their prompts encoded
again.
"""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dpdmd.method.denoiser import Condition, concatenate
from dpdmd.models.base import ModelAdapter, encoded
from dpdmd.models.identity import pipeline_identity
from dpdmd.store.digests import key_of
from dpdmd.store.progress import progress_bar
from dpdmd.store.tensor_store import Entry, TensorGroups

CHUNK = 64  # prompts encoded at a time
GROUP = 256  # prompts per file

logger = logging.getLogger(__name__)


class EmbeddingCache:
    """The embeddings that one set of text encoders has made, in one dtype, in a folder that runs share."""

    def __init__(self, folder: str | Path, adapter: ModelAdapter, dtype: torch.dtype = torch.float32):
        """Raises OSError when the folder cannot be made."""
        self.adapter, self.dtype = adapter, dtype
        name = str(dtype).removeprefix("torch.")
        self.folder = Path(folder) / f"{encoders_digest(adapter)[:32]}-{name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"the cache {folder} cannot be made ({error.strerror}): name another one by data.cache or the "
                "environment variable DPDMD_CACHE, or encode while training (--no-cache)",
            ) from None
        self.groups = TensorGroups(self.folder)

    def ensure(self, prompts: list[str], *, negative: bool = False, progress: bool = True) -> None:
        """Encode the (negative) prompts that are missing and store them file by file.

        An interrupted call can so be continued, and what other processes have written in the meantime is used. More
        than one prompt is announced, with the size on disk. Raises OSError when the disk has too little room.
        """
        missing = self.missing(prompts, negative=negative)
        if not missing:
            return
        with progress_bar(len(missing), "encoding prompts", unit="prompt", shown=progress) as bar:
            for start in range(0, len(missing), GROUP):
                chosen = missing[start : start + GROUP]
                rows = [row for chunk in self._encoded(chosen, negative) for row in chunk]
                if start == 0:
                    self._require_room(rows, len(missing))
                self.groups.write(dict(zip((_key(prompt, negative) for prompt in chosen), rows, strict=True)))
                bar.update(len(rows))
        self.missing(prompts, negative=negative)

    def missing(self, prompts: list[str], *, negative: bool = False) -> list[str]:
        """Those (negative) prompts, each once, that have to be encoded."""
        wanted = {_key(prompt, negative): prompt for prompt in prompts}
        return [wanted[key] for key in self.groups.missing(wanted)]

    def condition(self, prompts: list[str], *, negative: bool = False) -> Condition:
        """Conditioning of (negative) prompts that `ensure` has been given, in fp32 on the CPU."""
        return concatenate(_condition(self.groups.read(_key(prompt, negative))) for prompt in prompts)

    def _encoded(self, prompts: list[str], negative: bool) -> Iterator[list[Entry]]:
        for start in range(0, len(prompts), CHUNK):
            condition = encoded(self.adapter, prompts[start : start + CHUNK], negative=negative)
            tensors = {name: self._stored(tensor) for name, tensor in condition.tensors.items()}
            yield [_trimmed({name: t[i] for name, t in tensors.items()}) for i in range(len(condition))]

    def _stored(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _require_room(self, rows: list[Entry], number: int) -> None:
        """Raises OSError when `number` prompts of the mean size of `rows` do not fit on the disk."""
        size = sum(tensor.nbytes for row in rows for tensor in row.values()) * number // len(rows)
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise OSError(
                f"the embeddings of {number} prompts need about {size / 2**30:.1f} GiB in {self.folder}, where "
                f"{free / 2**30:.1f} GiB are free; name another folder (data.cache) or encode while training "
                "(--no-cache)"
            )
        if number > 1:
            logger.info("encoding %d prompts, about %.0f MiB, into %s", number, size / 2**20, self.folder)


def _key(prompt: str, negative: bool) -> str:
    """Of one text the two may differ (Sana's instruction); of "" they are the same."""
    return key_of("negative", prompt) if negative and prompt else key_of(prompt)


def _condition(entry: Entry) -> Condition:
    return Condition({name: t[None].float() if t.is_floating_point() else t[None] for name, t in entry.items()})


def _trimmed(row: Entry) -> Entry:
    """One prompt without the padding after its last token, if a mask (L,) marks the tokens."""
    masks = [tensor for name, tensor in row.items() if name.endswith("mask")]
    if not masks:
        return row
    length = max(int(masks[0].nonzero().max()) + 1 if masks[0].any() else 1, 1)
    return {name: t[:length] if t.ndim >= 2 or name.endswith("mask") else t for name, t in row.items()}


def encoders_digest(adapter: ModelAdapter, memo: Path | None = None) -> str:
    """SHA-256 over pipeline class, token limits and every file of the tokenizers and text encoders."""
    return pipeline_digest(adapter, memo, without=(adapter.network_name, "vae", "scheduler"))


def pipeline_digest(adapter: ModelAdapter, memo: Path | None = None, *, without: tuple[str, ...]) -> str:
    """`models.identity.pipeline_identity` of an adapter's source, with its class and token limits."""
    facts = adapter.pipeline_class.__name__, repr(adapter.token_limits)
    return pipeline_identity(adapter.source, *facts, without=without, memo=memo)
