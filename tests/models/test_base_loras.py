"""A teacher that is a base with LoRAs: stock diffusers fuses, draws and loads the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from snippets import drawn_by_card, pixels
from torch import Tensor, nn
from torch.testing import assert_close
from trainers import train

import dpdmd
from dpdmd.audit import _loras_as_trained
from dpdmd.evaluate.generate import generate_folder
from dpdmd.evaluate.stock import generate_with_stock
from dpdmd.models.identity import model_identity
from dpdmd.models.load import load_adapter, load_sampler
from dpdmd.models.student_file import LORA_FILE, BaseLora, StudentFile
from dpdmd.planning.answer import costs
from dpdmd.planning.write import write_recipe
from dpdmd.publish.export import export_run
from dpdmd.recipe.schema import Recipe
from dpdmd.recipe.teacher import parse_lora, teacher_adapter
from dpdmd.recipe.toml import dump_recipe, load_recipe
from dpdmd.store.tensors import read_tensors, write_tensors

PROMPTS = ["a red circle", "one cross"]
SIZE = (32, 48)


def write_lora(folder: str, path: Path, rank: int, seed: int, *, alpha: float | None = None, every: int = 1) -> Path:
    """A LoRA of every `every`-th linear layer of the attention; with `alpha` under kohya's names."""
    adapter = load_adapter(folder)
    network, rng = adapter.load_network(), torch.Generator().manual_seed(seed)
    layers: dict[str, Tensor] = {}
    linear = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear) and ".to_" in n]
    for name, module in linear[::every]:
        layers[f"{name}.lora_A.weight"] = 0.3 * torch.randn(rank, module.in_features, generator=rng)
        layers[f"{name}.lora_B.weight"] = 0.3 * torch.randn(module.out_features, rank, generator=rng)
    tensors = {f"{adapter.network_name}.{name}": t for name, t in layers.items()}
    if alpha is not None:
        tensors = adapter.lora_names(layers)
        tensors |= {name: torch.tensor(alpha) for name in tensors if name.endswith(".alpha")}
    write_tensors(path, tensors)
    return path


@pytest.fixture(scope="module", params=["sd3", "sdxl"])
def loras(request, tiny_folder, tmp_path_factory) -> tuple[str, tuple[BaseLora, ...]]:
    """(folder of a base, two LoRAs of different ranks, layers and weights, one of them in kohya's names for SDXL)."""
    folder, place = tiny_folder(request.param), tmp_path_factory.mktemp("loras")
    style = write_lora(folder, place / "style.safetensors", 2, seed=1)
    alpha = 6.0 if request.param == "sdxl" else None
    detail = write_lora(folder, place / "detail.safetensors", 3, seed=2, alpha=alpha, every=2)
    return folder, (BaseLora(path=str(style), weight=0.8), BaseLora(path=str(detail), weight=-0.5))


def fused(folder: str, loras: tuple[BaseLora, ...]):
    """The stock pipeline with these LoRAs, fused."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    for i, lora in enumerate(loras):
        pipeline.load_lora_weights(str(Path(lora.path).parent), weight_name=Path(lora.path).name, adapter_name=f"l{i}")
    pipeline.set_adapters([f"l{i}" for i in range(len(loras))], [lora.weight for lora in loras])
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return pipeline


def test_the_teacher_has_the_weights_that_stock_diffusers_fuses_and_its_pictures(loras, tmp_path):
    folder, both = loras
    adapter = load_adapter(folder, both)
    ours, theirs = adapter.load_network(), getattr(fused(folder, both), adapter.network_name)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    plain = load_adapter(folder).load_network().state_dict()
    assert any((tensor - plain[name]).abs().max() > 0.05 for name, tensor in expected.items())

    draw = {"prompts": PROMPTS[:1], "seeds": [0], "progress": False}
    for name, chosen in (("with", both), ("without", ())):
        generate_folder(folder, out=tmp_path / name, loras=chosen, num_inference_steps=3, **draw)
    difference = np.abs(pixels(tmp_path / "with")[0] - pixels(tmp_path / "without")[0]).max()
    assert difference > 4
    generate_with_stock(folder, out=tmp_path / "stock", loras=both, **draw)  # its own scheduler and steps
    merged = tmp_path / "merged"
    fused(folder, both).save_pretrained(merged)
    generate_with_stock(str(merged), out=tmp_path / "fused", **draw)
    assert np.abs(pixels(tmp_path / "stock")[0] - pixels(tmp_path / "fused")[0]).max() <= 1
    assert model_identity(folder, loras=both) not in (model_identity(folder), model_identity(folder, loras=both[::-1]))


def make_recipe(folder: str, both: tuple[BaseLora, ...], place: Path, **sections) -> Recipe:
    place.mkdir(exist_ok=True)
    (place / "prompts.txt").write_text("\n".join(PROMPTS))
    named = [{"path": lora.path, "weight": lora.weight} for lora in both]
    size = {"height": SIZE[0], "width": SIZE[1]}
    data = {
        "model": {"teacher": folder, "loras": named, "num_inference_steps": 4, **size},
        "student": {"num_steps": 2},
        "data": {"prompts": str(place / "prompts.txt"), "cache": str(place / "cache")},
        "train": {"num_updates": 1, "batch_size": 1, "fake_updates": 1, "learning_rate": 3e-2},
        "lora": {"roles": ["student", "fake_score"], "rank": 4, "alpha": 6.0},
        "validation": {"every": 0},
        "output": {"folder": str(place / "run")},
    }
    for name, values in sections.items():
        data[name] = data.get(name, {}) | values
    return Recipe.model_validate(data)


@pytest.fixture(scope="module")
def run(loras, tmp_path_factory) -> Path:
    """A finished run whose teacher has both LoRAs and whose student is a LoRA of rank 4 at scale 1.5."""
    folder, both = loras
    recipe = make_recipe(folder, both, tmp_path_factory.mktemp("taught"))
    return train(recipe, teacher_adapter(recipe.model), progress=False)


def test_exports_contain_the_loras_of_the_teacher(loras, run, tmp_path):
    """The whole pipeline, and one LoRA of rank 2 + 3 + 4, which stock diffusers loads on the plain base."""
    folder, both = loras
    info = StudentFile.read(run / "student")
    assert info.base_loras == both and not info.contains_loras and {"LoRA 1", "LoRA 2"} <= info.base_parts.keys()
    generate_folder(str(run), PROMPTS[:1], out=tmp_path / "ours", seeds=[0], progress=False)
    ours = pixels(tmp_path / "ours")[0]
    for name, lora in (("whole", False), ("lora", True)):
        out = export_run(run, tmp_path / name, lora=lora)
        assert np.abs(drawn_by_card(out, folder) - ours).max() <= 1
        generate_folder(str(out), PROMPTS[:1], out=tmp_path / f"{name}_drawn", seeds=[0], progress=False)
        assert np.abs(pixels(tmp_path / f"{name}_drawn")[0] - ours).max() <= 1
        card = (out / "README.md").read_text()
        assert "LoRA `style.safetensors` with weight 0.8, which is in its weights" in card
        assert "- LoRA `detail.safetensors`: unknown, look where it comes from" in card
        assert StudentFile.read(out).contains_loras
        assert _loras_as_trained(str(out), folder) == both and _loras_as_trained(str(out), "other/base") == ()
    tensors = read_tensors(tmp_path / "lora" / LORA_FILE)
    ranks = {len(t) for name, t in tensors.items() if "lora_A" in name or "lora_down" in name}
    assert ranks - {4} == {2 + 4, 2 + 3 + 4}  # 4: of layers that the teacher's leave alone


def test_the_joined_lora_is_the_merged_student_up_to_rounding(loras, run, tmp_path):
    folder, _ = loras
    joined = export_run(run, tmp_path / "joined", lora=True, dtype="fp32")
    network = getattr(fused(folder, (BaseLora(path=str(joined / LORA_FILE)),)), load_adapter(folder).network_name)
    merged = load_sampler(str(run)).network.state_dict()
    for name, tensor in network.state_dict().items():
        assert_close(tensor, merged[name], rtol=1e-5, atol=1e-5)  # sums in another order


def test_alone_the_students_lora_needs_those_of_the_teacher_beside_it(loras, run, tmp_path):
    both = loras[1]
    out = export_run(run, tmp_path / "alone", lora=True, alone=True)
    card = (out / "README.md").read_text()
    assert "LoRA `style.safetensors` with weight 0.8, to be loaded beside it" in card
    assert "pipe.load_lora_weights('style.safetensors', adapter_name='teacher_1')" in card
    assert "pipe.set_adapters(['student', 'teacher_1', 'teacher_2'], [1.0, 0.8, -0.5])" in card
    for name in ("whole", "alone"):
        model = str(run) if name == "whole" else str(out)
        generate_folder(model, PROMPTS[:1], out=tmp_path / f"{name}_drawn", seeds=[0], progress=False)
    assert np.abs(pixels(tmp_path / "whole_drawn")[0] - pixels(tmp_path / "alone_drawn")[0]).max() <= 1
    flow = json.loads((out / "comfyui_workflow.json").read_text())
    chain = [flow[name]["inputs"] for name in ("teacher_lora_1", "teacher_lora_2", "lora")]
    assert [node["strength_model"] for node in chain] == [0.8, -0.5, 1.0]
    assert [node["model"][0] for node in chain[1:]] == ["teacher_lora_1", "teacher_lora_2"]
    with pytest.raises(ValueError, match="--alone is about a LoRA"):
        export_run(run, tmp_path / "refused", alone=True)
    with pytest.raises(ValueError, match="is a student, which has the LoRAs of its teacher already"):
        generate_folder(str(run), PROMPTS[:1], out=tmp_path / "twice", seeds=[0], loras=both, progress=False)


def test_a_student_of_all_weights_needs_the_loras_no_more(loras, tmp_path):
    folder, both = loras
    kept = tuple(BaseLora(path=shutil.copy(lora.path, tmp_path), weight=lora.weight) for lora in both)
    recipe = make_recipe(folder, kept, tmp_path / "full", lora={"roles": []})
    run = train(recipe, teacher_adapter(recipe.model), progress=False)
    for lora in kept:
        Path(lora.path).unlink()
    load_sampler(str(run))
    export_run(run, tmp_path / "export")


def test_a_resumed_run_takes_moved_loras_and_refuses_other_ones(loras, tmp_path, caplog):
    folder, both = loras
    kept = [BaseLora(path=shutil.copy(lora.path, tmp_path), weight=lora.weight) for lora in both]
    recipe = make_recipe(folder, tuple(kept), tmp_path / "first")
    run = train(recipe, teacher_adapter(recipe.model), progress=False)
    (tmp_path / "moved").mkdir()
    moved = [BaseLora(path=shutil.move(lora.path, tmp_path / "moved"), weight=lora.weight) for lora in kept]
    with pytest.raises(ValueError, match=r"does not exist.*If it was moved, write its new place as \"base_loras\""):
        load_sampler(str(run))
    with pytest.raises(ValueError, match=r"model\.loras: there is no"):
        dpdmd.train(run, resume=True, progress=False)
    longer = {"train": {"num_updates": 2, "batch_size": 1, "fake_updates": 1, "learning_rate": 3e-2}}
    other = [moved[0].model_copy(update={"weight": 0.7}), moved[1]]
    for changed in (other, moved[:1]):
        recipe = make_recipe(folder, tuple(changed), tmp_path / "first", **longer)
        with pytest.raises(
            ValueError, match=r"the teacher's LoRA . had another content \(model\.teacher, model\.loras\)"
        ):
            train(recipe, teacher_adapter(recipe.model), resume=True, progress=False)
    recipe = make_recipe(folder, tuple(moved), tmp_path / "first", **longer)
    train(recipe, teacher_adapter(recipe.model), resume=True, progress=False)
    assert StudentFile.read(run / "student").base_loras == tuple(moved)


def test_what_cannot_be_merged_as_a_whole_is_refused_before_weights_are_read(tiny_folder, tmp_path, monkeypatch):
    folder = tiny_folder("sd3")
    good = read_tensors(write_lora(folder, tmp_path / "good.safetensors", 2, seed=1))
    first = next(name for name in good if name.endswith("lora_A.weight"))
    texts = {name.replace("transformer.", "text_encoder.", 1): t.clone() for name, t in good.items()}
    elsewhere = {name.replace("transformer_blocks.0", "transformer_blocks.9", 1): t.clone() for name, t in good.items()}
    cases = {
        "texts": (good | texts, r"has \d+ tensors for text_encoder, and only the transformer is merged: .*fuse_lora"),
        "other": (good | elsewhere, r"is for another model: .* has \d+ of its \d+ layers, the first that it lacks is "),
        "shape": (good | {first: torch.randn(2, 7)}, "does not fit .*size mismatch"),
        "half": ({name: t for name, t in good.items() if name != first}, "1 layers of the LoRA lack one of their"),
        "nan": (good | {first: torch.full_like(good[first], torch.nan)}, "1 tensors of the LoRA are not finite"),
    }
    monkeypatch.setattr("dpdmd.models.parts.load_network", None)
    for name, (tensors, message) in cases.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match=message) as caught:
            load_adapter(folder, [BaseLora(path=str(tmp_path / f"{name}.safetensors"))])
        assert "\n" not in str(caught.value)
    (tmp_path / "lora.bin").write_bytes(b"")
    for name, message in (("lora.bin", "pickles are not read"), ("god.safetensors", r"did you mean .*good\.safet")):
        with pytest.raises(ValueError, match=message):
            load_adapter(folder, [BaseLora(path=str(tmp_path / name))])
    with pytest.raises(ValueError, match="a PixArtSigmaPipeline of stock diffusers takes no LoRA"):
        load_adapter(tiny_folder("pixart_sigma"), [BaseLora(path=str(tmp_path / "good.safetensors"))])


def test_a_recipe_names_them_next_to_itself_and_in_short(tiny_folder, tmp_path, monkeypatch):
    folder = tiny_folder("sd3")
    style = write_lora(folder, tmp_path / "style.safetensors", 2, seed=1)
    recipe = dump_recipe(make_recipe(folder, (), tmp_path / "r"))
    (tmp_path / "recipe.toml").write_text(recipe.replace("loras = []", 'loras = ["style.safetensors"]'))
    monkeypatch.chdir(tmp_path.parent)
    loaded = load_recipe(tmp_path / "recipe.toml")
    assert [(lora.path, lora.weight) for lora in loaded.model.loras] == [(str(style), 1.0)]
    (tmp_path / "again.toml").write_text(dump_recipe(loaded))
    assert load_recipe(tmp_path / "again.toml") == loaded
    assert load_recipe(tmp_path / "recipe.toml", [f"model.loras={style}"]) == loaded
    with pytest.raises(ValueError, match="must not be 0, which would leave the LoRA out"):
        load_recipe(tmp_path / "recipe.toml", ['model.loras=[{path = "a", weight = 0}]'])
    assert f"LoRA {style} (1)" in costs(loaded)

    assert parse_lora(f"{style}:0.5") == BaseLora(path=str(style), weight=0.5)
    assert parse_lora(str(style)) == BaseLora(path=str(style))
    with pytest.raises(ValueError, match="and not 0, got 0"):
        parse_lora(f"{style}:0")
    written = write_recipe(folder, tmp_path / "new.toml", memory=24, loras=[f"{style}:0.5"])
    assert "--lora style.safetensors:0.5" in written.read_text()
    assert [(lora.path, lora.weight) for lora in load_recipe(written).model.loras] == [(str(style), 0.5)]
