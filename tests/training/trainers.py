"""From a recipe and an adapter to a trainer, or to a run, as the command line does it."""

import logging
from pathlib import Path

from accelerate import Accelerator

from dpdmd.models.base import ModelAdapter
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe
from dpdmd.store.messages import show_messages
from dpdmd.training.loop import run_training
from dpdmd.training.parts import build_parts
from dpdmd.training.run import checkpoint as checkpoints
from dpdmd.training.run.checkpoint import Checkpoint
from dpdmd.training.trainer import Trainer


def new_trainer(recipe: Recipe, adapter: ModelAdapter, accelerator: Accelerator | None = None) -> Trainer:
    """A trainer before its first update."""
    plan = resolve(recipe, adapter)
    return Trainer(plan, build_parts(plan, adapter, accelerator))


def train(recipe: Recipe, adapter: ModelAdapter, **options) -> Path:
    """Train to the end, with the library's messages on stdout; returns the run folder."""
    show_messages()
    return run_training(resolve(recipe, adapter), adapter, **options)


def latest_and_messages(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint, and the messages about damaged ones."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    checkpoints.logger.addHandler(handler)
    try:
        return checkpoints.latest_checkpoint(folder), messages
    finally:
        checkpoints.logger.removeHandler(handler)


def newest(folder: Path) -> Checkpoint:
    """The newest checkpoint, where none is damaged."""
    checkpoint, messages = latest_and_messages(folder)
    assert not messages, messages
    return checkpoint
