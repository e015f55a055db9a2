"""LoRA students of every family: one frozen backbone, and a file that stock diffusers takes."""

import copy
import json
from contextlib import contextmanager

import numpy as np
import pytest
import tiny_longcat_image
import torch
from diffusers import DiffusionPipeline, PixArtSigmaPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from families import taking_turns
from peft import LoraConfig
from PIL import Image
from snippets import drawn_by_card
from torch.testing import assert_close
from trainers import new_trainer, train

import dpdmd.training.networks as networks
from dpdmd.evaluate.generate import generate_folder
from dpdmd.evaluate.stock import load_pipeline
from dpdmd.method.roles import ROLES, TRAINED_ROLES
from dpdmd.models.load import load_adapter, load_sampler
from dpdmd.models.lora import save_lora
from dpdmd.models.parts import cached_folder
from dpdmd.models.role_networks import make_roles
from dpdmd.models.student_file import LORA_FILE
from dpdmd.planning.cost import describe, network_sizes
from dpdmd.publish.export import export_run
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe
from dpdmd.store.tensors import read_metadata, read_tensors
from dpdmd.training.trainer import Trainer

PROMPTS = ["a red circle", "the small blue cross on a white background", "one cross"]
LORA = {"roles": ["student", "fake_score"], "rank": 4, "alpha": 6.0}


def make_recipe(folder: str, tmp_path, size: tuple[int, int], **sections) -> Recipe:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    data = {
        "model": {"teacher": folder, "num_inference_steps": 4, "height": size[0], "width": size[1]},
        "student": {"num_steps": 2},
        "objective": {"name": "dp_dmd", "anchor": {"weight": 1.0}},
        "data": {"prompts": str(tmp_path / "prompts.txt")},
        "train": {"num_updates": 2, "batch_size": 2, "fake_updates": 1, "learning_rate": 3e-2},
        "lora": LORA,
        "output": {"folder": str(tmp_path / "run")},
    }
    for name, values in sections.items():
        data[name] = data.get(name, {}) | values
    return Recipe.model_validate(data)


@pytest.fixture(scope="module")
def run(family, folder, tmp_path_factory):
    """A finished run whose student is a LoRA."""
    tmp_path = tmp_path_factory.mktemp("lora")
    return train(make_recipe(folder, tmp_path, family.IMAGE_SIZE), load_adapter(folder), progress=False)


def picture(model, out) -> np.ndarray:
    generate_folder(str(model), ["a red circle"], out=out, seeds=[0], progress=False)
    return np.asarray(Image.open(next(out.glob("*.png")))).astype(int)


@taking_turns("lora", {"lora": True, "merged": False})
def test_the_cards_snippet_in_stock_diffusers_reproduces_the_student(lora, run, family, folder, tmp_path):
    if lora and family.STOCK is PixArtSigmaPipeline:
        with pytest.raises(ValueError, match="cannot load a LoRA; export it without --lora, which merges it"):
            export_run(run, tmp_path / "export", lora=True)
        return
    out = export_run(run, tmp_path / "export", lora=lora)
    assert (out / LORA_FILE).is_file() == lora
    stock, ours = drawn_by_card(out, folder), picture(run, tmp_path / "ours")
    assert np.abs(stock - ours).max() <= 1
    assert np.abs(picture(out, tmp_path / "reloaded") - ours).max() <= 1
    assert run_differs_from_base(run, folder)


def test_the_network_loads_a_lora_where_the_pipeline_has_no_call_for_it(tiny_folder, tmp_path):
    folder = tiny_folder("longcat_image")
    recipe = make_recipe(folder, tmp_path, tiny_longcat_image.IMAGE_SIZE)
    run = train(recipe, load_adapter(folder), progress=False)
    out = export_run(run, tmp_path / "export", lora=True)
    assert "pipe.transformer.load_lora_adapter('export', prefix='transformer'," in (out / "README.md").read_text()
    assert {name.partition(".")[0] for name in read_tensors(out / LORA_FILE)} == {"transformer"}
    assert np.abs(drawn_by_card(out, folder) - picture(run, tmp_path / "ours")).max() <= 1
    assert run_differs_from_base(run, folder)


@pytest.mark.parametrize("option", ["use_rslora", "use_dora"])
@pytest.mark.parametrize("family_name", ["sd3", "sdxl"])
def test_variants_of_lora_reach_stock_diffusers_as_well(family_name, option, tiny_folder, tmp_path):
    folder, is_dora = tiny_folder(family_name), option == "use_dora"
    recipe = make_recipe(folder, tmp_path, (32, 48), lora={option: True}, train={"num_updates": 1})
    run = train(recipe, load_adapter(folder), progress=False)
    if is_dora:
        with pytest.raises(ValueError, match="export it without --lora"):
            export_run(run, tmp_path / "refused", lora=True)
        assert not (tmp_path / "refused").exists()
    out = export_run(run, tmp_path / "export", lora=not is_dora)
    assert np.abs(drawn_by_card(out, folder) - picture(run, tmp_path / "ours")).max() <= 1


def test_the_export_of_a_lora_reads_no_network(run, family, folder, tmp_path, monkeypatch):
    if family.STOCK is PixArtSigmaPipeline:
        pytest.skip("stock diffusers cannot load it")
    adapter_class = type(load_adapter(folder))
    monkeypatch.setattr(adapter_class, "load_network", lambda *_: pytest.fail("loaded the network"))
    out = export_run(run, tmp_path / "export", lora=True, dtype="bf16")
    assert {t.dtype for t in read_tensors(out / LORA_FILE).values() if t.ndim} == {torch.bfloat16}
    again = export_run(
        out, tmp_path / "again", lora=True, dtype="bf16"
    )  # an export has its scale in its weights already
    assert (again / LORA_FILE).read_bytes() == (out / LORA_FILE).read_bytes()


def test_a_lora_has_the_dtype_of_its_base_and_so_has_what_draws_it(tiny_folder, tmp_path):
    """A base in bf16: `sample`, `export` and the pipeline of `audit` compute in it, on a CPU as well."""
    base = tmp_path / "base"
    pipeline = DiffusionPipeline.from_pretrained(tiny_folder("sd3"), dtype=torch.bfloat16)
    pipeline.save_pretrained(base)
    recipe = make_recipe(str(base), tmp_path, (32, 48), train={"num_updates": 1})
    run = train(recipe, load_adapter(str(base)), progress=False)
    assert {t.dtype for t in read_tensors(run / "student" / LORA_FILE).values()} == {torch.float32}
    out, merged = export_run(run, tmp_path / "export", lora=True), export_run(run, tmp_path / "merged")
    weights = merged / "transformer/diffusion_pytorch_model.safetensors"
    assert {t.dtype for t in (*read_tensors(out / LORA_FILE).values(), *read_tensors(weights).values())} == {
        torch.bfloat16
    }
    assert {load_sampler(str(model)).network.dtype for model in (base, run, out, merged)} == {torch.bfloat16}
    audited, fit = load_pipeline(str(out), str(base))
    assert audited.transformer.dtype == torch.bfloat16 and fit[0] == fit[1] > 0
    # bf16 has 8 binary digits; autocast and stock diffusers round at other places.
    ours = picture(run, tmp_path / "ours")
    for place in (out, merged):
        assert "dtype=torch.bfloat16" in (place / "README.md").read_text()
        assert np.abs(drawn_by_card(place, str(base)) - ours).mean() < 2
    assert run_differs_from_base(run, str(base))


def test_a_lora_whose_base_is_not_on_this_machine_stays_as_it_was_trained(run, family, tmp_path, monkeypatch, caplog):
    """Nothing is downloaded to find out how the base is stored."""
    if family.STOCK is PixArtSigmaPipeline:
        pytest.skip("stock diffusers cannot load it")
    from dpdmd.publish import export

    monkeypatch.setattr(export, "cached_folder", lambda source: None)
    out = export_run(run, tmp_path / "export", lora=True)
    assert {t.dtype for t in read_tensors(out / LORA_FILE).values() if t.ndim} == {torch.float32}
    assert "--dtype names another" in caplog.text


def test_a_hub_id_is_looked_for_in_the_cache_alone(monkeypatch, tmp_path):
    asked = []

    def download(source, **options):
        asked.append(options)
        raise OSError("not there")

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    assert cached_folder("me/none") is None and asked[0]["local_files_only"]
    assert cached_folder(str(tmp_path)) == tmp_path


def run_differs_from_base(run, folder: str) -> bool:
    """Whether the update is worth noticing: the stock network moves by it."""
    layers = read_tensors(run / "student" / LORA_FILE)
    return any("lora_B" in name and value.abs().max() > 1e-2 for name, value in layers.items())


def test_only_the_active_roles_adapter_ever_moves(family, folder, tmp_path):
    trainer = new_trainer(make_recipe(folder, tmp_path, family.IMAGE_SIZE), load_adapter(folder))
    backbone = load_adapter(folder).load_network().state_dict()
    for role in TRAINED_ROLES:
        other = next(name for name in TRAINED_ROLES if name != role)
        before = {name: [p.clone() for p in trainer.roles.parameters(name).values()] for name in TRAINED_ROLES}
        {"student": trainer._student_update, "fake_score": trainer._fake_updates}[role]()
        now = trainer.roles.parameters(role).values()
        moved = [not torch.equal(p, old) for p, old in zip(now, before[role], strict=True)]
        assert sum(moved) > len(moved) / 3  # the halves that start at zero, except those without influence
        assert all(map(torch.equal, trainer.roles.parameters(other).values(), before[other]))
    for name, value in trainer.network("teacher").state_dict().items():
        if "lora_" not in name:
            assert torch.equal(value, backbone[name.replace(".base_layer", "")]), name


class ThreeBackbones:
    """The reference: every role has its own backbone, with one adapter that is always on."""

    def __init__(self, teacher, start=None, *, lora, frozen_dtype, seed):
        options = {"frozen_dtype": frozen_dtype, "seed": seed}
        own = {role: {role: lora[role]} if role in lora else {} for role in ROLES}
        self.single = {role: make_roles(copy.deepcopy(teacher), lora=own[role], **options) for role in ROLES}
        self.networks = {role: single.networks[role] for role, single in self.single.items()}
        self.modules = self.networks
        self.adapters, self.num_calls = frozenset(lora), 0
        for role in lora:
            self.single[role]._activate(role)

    @contextmanager
    def use(self, role):
        yield self.networks[role]

    def parameters(self, role):
        return self.single[role].parameters(role)


@pytest.mark.parametrize("family_name", ["sd3", "sdxl"])
@pytest.mark.parametrize("objective", ["dmd", "dp_dmd"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_backbone_trains_as_three_do(
    family_name, objective, precision, gradient_checkpointing, tiny_folder, tmp_path, monkeypatch
):
    folder = tiny_folder(family_name)
    anchor = {"anchor": {"weight": 1.0}} if objective == "dp_dmd" else {}

    def trainer(checkpointed: bool) -> Trainer:
        train = {"precision": precision, "gradient_checkpointing": checkpointed}
        sections = {"objective": {"name": objective} | anchor, "train": train}
        return new_trainer(make_recipe(folder, tmp_path, (32, 48), **sections), load_adapter(folder))

    shared = trainer(gradient_checkpointing)
    monkeypatch.setattr(networks, "make_roles", ThreeBackbones)
    apart = trainer(False)
    assert isinstance(apart.roles, ThreeBackbones)
    for _ in range(2):
        row, expected = shared.iterate(), apart.iterate()
        for key in row:
            if key != "seconds":
                assert row[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5), key
    for role in TRAINED_ROLES:
        mine, theirs = shared.roles.parameters(role), apart.roles.parameters(role)
        assert mine.keys() == theirs.keys()
        for name, parameter in mine.items():
            assert parameter.dtype == torch.float32
            assert_close(parameter, theirs[name], atol=2e-3 if precision == "bf16" else 1e-4, rtol=1e-3)


def test_the_plan_counts_the_adapters(family, folder, tmp_path):
    recipe, adapter = make_recipe(folder, tmp_path, family.IMAGE_SIZE), load_adapter(folder)
    sizes, trainer = network_sizes(resolve(recipe, adapter), adapter), new_trainer(recipe, load_adapter(folder))
    assert sizes.adapter == sum(p.numel() for p in trainer.roles.parameters("student").values())
    assert sizes.network == sum(p.numel() for p in load_adapter(folder).load_network().parameters())
    assert f"rank 4, {sizes.adapter:,} parameters each" in describe(resolve(recipe, adapter), adapter)


def test_a_frozen_backbone_in_bf16_trains_fp32_adapters(family, folder, tmp_path):
    recipe = make_recipe(
        folder, tmp_path, family.IMAGE_SIZE, model={"dtype": "bf16"}, train={"precision": "bf16", "num_updates": 1}
    )
    trainer = new_trainer(recipe, load_adapter(folder))
    row = trainer.iterate()
    assert all(np.isfinite(value) for value in row.values())
    dtypes = {p.dtype for p in trainer.roles.parameters("student").values()}
    assert dtypes == {torch.float32}
    frozen = [p for name, p in trainer.network("teacher").named_parameters() if "lora_" not in name]
    assert sum(p.dtype == torch.bfloat16 for p in frozen) > len(frozen) / 2


def test_a_target_that_is_no_linear_layer_is_refused(family, folder, tmp_path):
    recipe = make_recipe(folder, tmp_path, family.IMAGE_SIZE, lora={"targets": ["to_q", "to_nowhere"]})
    with pytest.raises(ValueError, match=r"lora\.targets: to_nowhere is no linear layer of"):
        new_trainer(recipe, load_adapter(folder))


def test_a_student_without_a_lora_has_none_to_export(run, tmp_path, folder, family):
    recipe = make_recipe(folder, tmp_path, family.IMAGE_SIZE, lora={"roles": ["fake_score"]}, train={"num_updates": 1})
    mixed = train(recipe, load_adapter(folder), progress=False)
    assert (mixed / "student" / "student.safetensors").is_file()
    with pytest.raises(ValueError, match="export it without --lora"):
        export_run(mixed, tmp_path / "export", lora=True)


@pytest.mark.slow
def test_compiled_blocks_train_as_they_are_otherwise(tiny_folder, tmp_path, monkeypatch):
    """With adapters and recomputation; of copies in tests/models/test_adversarial.py."""
    # The graphs that are traced, run without the code generator, which takes minutes: roles, adapters and recomputation
    # are what tracing could get wrong.
    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: real(module, backend="aot_eager"))
    rows, folder = [], tiny_folder("sd3", num_layers=2)
    for compiled in (False, True):
        options = {"gradient_checkpointing": True, "compile": compiled, "learning_rate": 1e-3}
        recipe = make_recipe(folder, tmp_path, (32, 48), lora=LORA, train=options)
        trainer = new_trainer(recipe, load_adapter(folder))
        rows.append(trainer.iterate())
    for key in rows[0]:
        if key.startswith(("loss/", "grad_norm/")):
            assert rows[1][key] == pytest.approx(rows[0][key], rel=1e-4), key


def test_the_header_of_a_lora_says_its_targets_in_order_so_that_it_is_the_same_file_each_time(tiny_folder, tmp_path):
    adapter, targets = load_adapter(tiny_folder("sd3")), ["to_v", "to_q", "to_k", "add_q_proj", "to_out.0"]
    name = "transformer_blocks.0.attn.to_q.lora_A.weight"
    save_lora(adapter, {name: torch.zeros(2, 8)}, LoraConfig(r=2, target_modules=targets), tmp_path)
    header = json.loads(read_metadata(tmp_path / LORA_FILE)[LORA_ADAPTER_METADATA_KEY])
    assert header["transformer.target_modules"] == sorted(targets)
