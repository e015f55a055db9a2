import importlib
from collections.abc import Callable
from functools import cache

import pytest


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Callable[..., str]:
    """tiny_folder(family, **settings): what tiny_FAMILY.save(folder, **settings) writes, once a session; read only."""

    @cache
    def make(family: str, **settings) -> str:
        folder = tmp_path_factory.mktemp(family)
        importlib.import_module(f"tiny_{family}").save(folder, **settings)
        return str(folder)

    return make


@pytest.fixture(scope="session")
def sd3_folder(tiny_folder) -> str:
    """A random StableDiffusion3Pipeline folder whose T5 says nothing, as the built-in teacher's."""
    return tiny_folder("sd3")


@pytest.fixture(scope="session")
def sd3_folder_with_t5(tiny_folder) -> str:
    """The same with a T5 that speaks, so that nothing can be folded."""
    return tiny_folder("sd3", speaking_t5=True)
