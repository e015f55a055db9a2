"""What libraries raise while they read what a user gave, turned into one sentence. No other module catches everything.

    with reading("my_model", "vae weights"):
        AutoencoderKL.from_pretrained(...)

raises InputError "my_model: cannot read its vae weights: ..." for a broken file, whatever the library raised, and
OSError where the machine is at fault: memory, the disk, open files. Only calls of libraries belong into such a block,
since a mistake of our own would be blamed on the file.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 300  # characters of a library's own message
OF_MACHINE = (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EROFS)
OUT_OF_MEMORY = (
    "OutOfMemoryError",
    "can't allocate memory",
    "not enough memory",
)  # what torch raises is a RuntimeError


class InputError(ValueError):
    """What a user gave cannot be used; the message says what, why and what to do. Blocks around it leave it alone."""


class StoppedBySignal(Exception):
    """Training was asked to stop and has saved a checkpoint; `exit_code` is 128 + the signal's number, as in shells."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


@contextmanager
def reading(source: object, part: str) -> Iterator[None]:
    """`library_errors` with "SOURCE: cannot read its PART"."""
    with library_errors(f"{source}: cannot read its {part}"):
        yield


@contextmanager
def library_errors(what: str, advice: str = "", *, kind: type[Exception] = InputError) -> Iterator[None]:
    """Whatever is raised within becomes `kind` "WHAT: REASON; ADVICE", or OSError where the machine is at fault.

    InputError and FloatingPointError (a result that is not finite) pass: they are ours and complete.
    """
    try:
        yield
    except (InputError, FloatingPointError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OSError(f"{what}: this machine has not enough memory for it") from None
        if isinstance(error, OSError) and error.errno in OF_MACHINE:
            raise OSError(f"{what}: {reason_of(error)}") from None
        raise kind(f"{what}: {reason_of(error)}{'; ' if advice else ''}{advice}") from error


def require_text(text: str, where: str) -> None:
    """Raises InputError for a text that cannot be written as UTF-8: JSON and command lines can hold half characters."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{where}: {text[:80]!a} has half a character (a lone surrogate) in it; write it again")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, in Python, on the CPU or on a GPU."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in f"{type(error).__name__} {error}" for text in OUT_OF_MEMORY)


def reason_of(error: BaseException) -> str:
    """Why a library failed, in one line: for a hub what the user can do about it, else the library's own words."""
    for link in _causes(error):
        if (known := _of_hub(link)) is not None:
            return known
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    words = " ".join(str(error).split())
    if not isinstance(error, ValueError | OSError | RuntimeError) or not words:
        words = f"{type(error).__name__}{': ' if words else ''}{words}"
    return words if len(words) <= LONGEST else words[: LONGEST - 4] + " ..."


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those that led to it, the last one first."""
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = link.__cause__ or link.__context__


def _of_hub(error: BaseException) -> str | None:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "the repository is gated; accept its licence on huggingface.co and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "huggingface.co has no such repository, or it is private and you are not logged in (`hf auth login`)"
    if isinstance(error, LocalEntryNotFoundError):
        return "it is not in the local cache and huggingface.co cannot be reached"
    return None
