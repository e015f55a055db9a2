"""Networks as ComfyUI reads them: judged by the layouts of the authors, and by the stock converters that lead back."""

import json

import original_layouts
import pytest
import torch
from diffusers import DiffusionPipeline, Krea2Pipeline
from diffusers.loaders import single_file_utils as stock
from test_lora_names import full_size, shapes

from dpdmd.models.base import empty_network
from dpdmd.models.load import load_adapter
from dpdmd.models.student_file import StudentFile
from dpdmd.publish.comfyui_layout import COMFYUI_FILE, TABLES, in_comfyui_layout
from dpdmd.publish.export import export_run
from dpdmd.store.tensors import read_tensors, write_tensors

NAMES = {
    "chroma": "ChromaPipeline",
    "flux2_klein": "Flux2KleinPipeline",
    "krea2": "Krea2Pipeline",
    "longcat_image": "LongCatImagePipeline",
    "lumina2": "Lumina2Pipeline",
}


def numbered(network) -> dict[str, torch.Tensor]:
    """Its tensors with every row numbered, none like another. A matrix has one column, which stands for all."""
    made = {}
    for i, (name, t) in enumerate(network.state_dict().items()):
        rows = t.shape if t.ndim < 2 or t.shape[0] < 10 else (t.shape[0], 1)
        made[name] = 1e6 * i + torch.arange(torch.Size(rows).numel(), dtype=torch.float64).view(rows)
    return made


def back(model: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What stock diffusers reads from them; of LongCat-Image as from a FLUX.1 without pooled prompt."""
    if model != "longcat_image":
        return {
            "chroma": stock.convert_chroma_transformer_checkpoint_to_diffusers,
            "flux2_klein": stock.convert_flux2_transformer_checkpoint_to_diffusers,
            "krea2": stock.convert_krea2_transformer_checkpoint_to_diffusers,
            "lumina2": stock.convert_lumina2_to_diffusers,
        }[model](tensors)
    pooled = [f"vector_in.{layer}.{kind}" for layer in ("in_layer", "out_layer") for kind in ("weight", "bias")]
    flux = {name.replace("_norm.weight", "_norm.scale"): t for name, t in tensors.items()}
    read = stock.convert_flux_transformer_checkpoint_to_diffusers(flux | dict.fromkeys(pooled, torch.zeros(1)))
    return {name.replace("time_text_", "time_"): t for name, t in read.items() if ".text_embedder." not in name}


@pytest.mark.parametrize("model", NAMES)
def test_stock_diffusers_leads_every_row_back_to_its_place(model, tmp_path):
    given = numbered(empty_network(full_size(model, tmp_path)))
    read = back(model, in_comfyui_layout(NAMES[model], given))
    assert set(read) == set(given) and set(NAMES.values()) == set(TABLES)
    assert all(torch.equal(read[name], tensor) for name, tensor in given.items())


@pytest.mark.parametrize("model", [model for model in NAMES if model != "longcat_image"])
def test_all_tensors_have_the_names_and_shapes_of_the_authors_checkpoint(model, tmp_path):
    network = empty_network(full_size(model, tmp_path))
    table = shapes(getattr(original_layouts, model)())
    table.pop("norm_final.weight", None)  # of Lumina-Image 2.0, which nothing uses
    assert shapes(in_comfyui_layout(NAMES[model], network.state_dict())) == table


def test_a_tensor_without_a_place_is_refused(tmp_path):
    network = empty_network(full_size("krea2", tmp_path))
    with pytest.raises(ValueError, match=r"new_part\.weight of a Krea2Pipeline has no place"):
        in_comfyui_layout("Krea2Pipeline", network.state_dict() | {"new_part.weight": torch.zeros(1)})


@pytest.mark.parametrize("one_file", [True, False])
def test_an_export_for_comfyui_has_the_network_once_more_and_a_workflow_that_loads_it(one_file, tiny_folder, tmp_path):
    folder = tiny_folder("krea2")
    student = load_adapter(folder).load_network().state_dict()
    write_tensors(tmp_path / "run/student/student.safetensors", student)
    StudentFile(base=folder, grid=(1.0, 0.75, 0.0)).write(tmp_path / "run/student")
    out = export_run(tmp_path / "run", tmp_path / "export", one_file=one_file)
    card = (out / "README.md").read_text()
    if not one_file:
        assert not list(out.glob("comfyui*")) and "`dpdmd export --one-file` also writes it" in card
        return
    expected = in_comfyui_layout("Krea2Pipeline", student)
    found = read_tensors(out / COMFYUI_FILE)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], t) for name, t in expected.items())
    workflow = json.loads((out / "comfyui_workflow.json").read_text())
    assert workflow["network"]["inputs"]["unet_name"] == COMFYUI_FILE
    assert isinstance(DiffusionPipeline.from_pretrained(out), Krea2Pipeline)
