"""What is logged is printed once, by the first process, between progress bars."""

import logging
import sys

import pytest
from tqdm import tqdm

from dpdmd.store.messages import show_messages, without_loading_bars


@pytest.fixture(autouse=True)
def only_our_handlers(monkeypatch):
    monkeypatch.setattr(logging.getLogger("dpdmd"), "propagate", False)  # pytest's own handler


def log_all():
    logger = logging.getLogger("dpdmd.somewhere")
    logger.debug("not shown")
    logger.info("100 %% of %d", 3)
    logger.warning("careful")


@pytest.mark.parametrize("rank", [None, "0"])
def test_messages_are_plain_lines_on_stdout_however_often_they_are_enabled(capsys, monkeypatch, rank):
    monkeypatch.delenv("RANK", raising=False) if rank is None else monkeypatch.setenv("RANK", rank)
    show_messages()
    show_messages()
    log_all()
    assert capsys.readouterr() == ("100 % of 3\ncareful\n", "")


def test_other_processes_are_silent(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    show_messages()
    log_all()
    assert capsys.readouterr() == ("", "")


def test_a_progress_bar_is_cleared_before_a_line_and_drawn_again_below_it(capsys):
    show_messages()
    with tqdm(total=2, desc="bar", file=sys.stdout):
        logging.getLogger("dpdmd.somewhere").info("a line")
    before, after = capsys.readouterr().out.split("a line\n")
    assert before.endswith(" \r") and "bar" in after


@pytest.mark.parametrize("downloads", [True, False])
def test_bars_of_loading_are_off_within_the_block_and_those_of_downloads_as_they_were(downloads):
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as of_transformers

    def state():
        return (
            of_diffusers.is_progress_bar_enabled(),
            of_transformers.is_progress_bar_enabled(),
            not are_progress_bars_disabled(),
        )

    assert state() == (True, True, True)
    try:
        (enable_progress_bars if downloads else disable_progress_bars)()
        with pytest.raises(OSError), without_loading_bars():
            assert state() == (False, False, downloads)
            raise OSError
        assert state() == (True, True, downloads)
    finally:
        enable_progress_bars()
