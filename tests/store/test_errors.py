import errno

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError

from dpdmd.store.errors import LONGEST, InputError, library_errors, reading


def message_of(error: BaseException, kind: type[BaseException] = InputError) -> str:
    with pytest.raises(kind) as caught, reading("model", "vae weights"):
        raise error
    return str(caught.value)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SafetensorError("bad header"), "SafetensorError: bad header"),
        (ValueError("one\n  two"), "one two"),
        (AttributeError("'list' object has no attribute 'items'"), "AttributeError: 'list' object has no attribute"),
        (KeyError("block_out_channels"), "it lacks 'block_out_channels'"),
        (AssertionError(), "AssertionError"),
        (RecursionError("maximum recursion depth exceeded"), "it is nested too deeply"),
        (PermissionError(errno.EACCES, "Permission denied", "vae/config.json"), "Permission denied: vae/config.json"),
        (LocalEntryNotFoundError("try again"), "not in the local cache and huggingface.co cannot be reached"),
    ],
)
def test_whatever_a_library_raises_is_one_line_with_the_part(error, reason):
    message = message_of(error)
    assert message.startswith("model: cannot read its vae weights: ") and reason in message and "\n" not in message


def test_the_cause_is_looked_for_behind_the_library_s_own_error():
    try:
        try:
            raise LocalEntryNotFoundError("no connection")
        except LocalEntryNotFoundError as error:
            raise OSError("We couldn't connect, see https://huggingface.co/docs") from error
    except OSError as error:
        assert "cannot be reached" in message_of(error) and "docs" not in message_of(error)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_the_machine_s_faults_stay_faults_of_the_machine(error):
    assert "model: cannot read its vae weights: " in message_of(error, OSError)


def test_our_own_errors_pass_unchanged():
    assert message_of(InputError("said already")) == "said already"
    assert message_of(FloatingPointError("NaN"), FloatingPointError) == "NaN"
    with pytest.raises(KeyboardInterrupt), library_errors("x"):
        raise KeyboardInterrupt


def test_a_wall_of_text_is_cut_and_the_advice_stays():
    with pytest.raises(InputError) as caught, library_errors("x", "do y"):
        raise RuntimeError("word " * 1000)
    assert len(str(caught.value)) <= LONGEST + 20 and str(caught.value).endswith(" ...; do y")
