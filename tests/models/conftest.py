import importlib
from collections.abc import Callable
from functools import cache

import pytest
import torch
from families import FAMILIES

from dpdmd.models.load import load_adapter
from dpdmd.store.files import write_json
from dpdmd.store.tensors import write_tensors


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
    """A random StableDiffusion3Pipeline folder with a silent T5 (all outputs zero), like the built-in teacher's."""
    return tiny_folder("sd3")


@pytest.fixture(scope="session")
def sd3_folder_with_t5(tiny_folder) -> str:
    """The same with a T5 that is not silent, so that nothing can be folded."""
    return tiny_folder("sd3", speaking_t5=True)


@pytest.fixture(scope="session", params=FAMILIES)
def family(request):
    """The module tiny_FAMILY: what the tests of all families need to know of each (see test_contract)."""
    return importlib.import_module(f"tiny_{request.param}")


@pytest.fixture(scope="session")
def folder(family, tiny_folder) -> str:
    """A tiny teacher's pipeline folder."""
    return tiny_folder(family.__name__.removeprefix("tiny_"))


@pytest.fixture
def run(sd3_folder, tmp_path):
    """A finished run whose student is the teacher with every weight moved a little."""
    student = load_adapter(sd3_folder).load_network().state_dict()
    torch.manual_seed(1)
    moved = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in student.items()}
    folder = tmp_path / "run"
    write_tensors(folder / "student" / "student.safetensors", moved)
    info = {
        "base": sd3_folder,
        "grid": [1.0, 0.9, 0.75, 0.5, 0.0],
        "num_inference_steps": 4,
        "objective": "dp_dmd",
        "updates": 1,
    }
    write_json(folder / "student" / "student.json", info)
    return folder
