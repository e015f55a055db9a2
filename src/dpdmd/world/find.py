"""The built-in worlds by name, by teacher and by prompts."""

from collections.abc import Collection, Iterable
from importlib import import_module

from torch import Size

from dpdmd.world.base import World

# Name -> module with the world as WORLD, imported when it is needed. A further world is a line here.
WORLDS = {"scenes": "dpdmd.world.scene_world", "drawings": "dpdmd.world.drawings.world"}


def world_named(name: str) -> World:
    """The world of this name. Raises KeyError for another name."""
    return import_module(WORLDS[name]).WORLD


def world_of_teacher(teacher: str) -> World | None:
    """The world that a built-in teacher draws; None for another model."""
    return next((world for world in map(world_named, WORLDS) if teacher in world.teachers), None)


def world_of_images(prompts: Collection[str], shapes: Iterable[Size]) -> World | None:
    """The world whose captions all prompts are and whose size all images (3, H, W) have, by their shapes; or None.

    The shapes are looked at only if a world knows the prompts.
    """
    for world in map(world_named, WORLDS):
        if world.knows(prompts):
            return world if all(shape == (3, world.image_size, world.image_size) for shape in shapes) else None
    return None
