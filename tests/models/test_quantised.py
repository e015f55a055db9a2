"""Adapters on a quantised base: the base is unchanged, and what was trained is put on the unquantised one."""

import numpy as np
import pytest
import torch
from PIL import Image
from processes import in_processes
from snippets import drawn_by_card
from torch import nn
from trainers import new_trainer, train

from dpdmd.evaluate.generate import generate_folder
from dpdmd.method.denoiser import Condition
from dpdmd.method.roles import TRAINED_ROLES
from dpdmd.models import quantised
from dpdmd.models.fp8 import Fp8Linear
from dpdmd.models.load import load_adapter
from dpdmd.models.quantised import PACKAGES, block_layers, quantise
from dpdmd.models.role_networks import enable_gradient_checkpointing
from dpdmd.models.student_file import LORA_FILE
from dpdmd.planning.cost import network_sizes
from dpdmd.planning.memory import AsOnGpu, LiveBytes, on_gpu, peak_bytes
from dpdmd.publish.export import export_run
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe
from dpdmd.store.tensors import read_tensors

PROMPTS = ["a red circle", "the small blue cross on a white background", "one cross"]


@pytest.fixture(params=list(PACKAGES))
def dtype(request) -> str:
    """A `model.dtype` whose package is installed, if it needs one."""
    if (package := PACKAGES[request.param]) is not None:
        pytest.importorskip(package, reason=f"model.dtype {request.param!r} needs it")
    return request.param


def make_recipe(folder: str, tmp_path, dtype: str, size=(32, 48), **sections) -> Recipe:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    data = {
        "model": {"teacher": folder, "dtype": dtype, "num_inference_steps": 4, "height": size[0], "width": size[1]},
        "student": {"num_steps": 2},
        "objective": {"name": "dp_dmd", "anchor": {"weight": 1.0}},
        "data": {"prompts": str(tmp_path / "prompts.txt")},
        "train": {"num_updates": 2, "batch_size": 2, "fake_updates": 1, "learning_rate": 3e-2, "precision": "bf16"},
        "lora": {"roles": ["student", "fake_score"], "rank": 4, "alpha": 6.0},
        "output": {"folder": str(tmp_path / "run")},
    }
    for name, values in sections.items():
        data[name] = data.get(name, {}) | values
    return Recipe.model_validate(data)


def inputs(adapter, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, Condition]:
    noise = torch.randn(2, *adapter.latent_shape(*size), generator=torch.Generator().manual_seed(0))
    return noise, torch.tensor([0.9, 0.4]), adapter.encode(PROMPTS[:2])


def frozen(network: nn.Module) -> dict[str, torch.Tensor]:
    """Every number of the base, by the names that it has without adapters."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items() if "lora_" not in name}
    return {name.replace(".base_layer", ""): tensor for name, tensor in state.items()}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    parts = [[t.qdata, t.scale] if hasattr(t, "qdata") else [t] for t in (a, b)]
    return all(map(torch.equal, *parts))


def test_the_teacher_is_the_quantised_network_bit_for_bit_whatever_the_adapters_are(dtype, family, folder, tmp_path):
    adapter = load_adapter(folder)
    alone = adapter.load_network(torch.bfloat16)
    quantise(alone, dtype, adapter.block_lists)
    trainer = new_trainer(make_recipe(folder, tmp_path, dtype, family.IMAGE_SIZE), adapter)
    trainer.iterate()
    x_t, t, cond = inputs(adapter, family.IMAGE_SIZE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = adapter.predict(alone, x_t, t, cond)
    with torch.no_grad():
        prediction, student = trainer.denoisers.teacher(x_t, t, cond), trainer.denoisers.student(x_t, t, cond)
    assert torch.equal(prediction.x0, expected.x0)
    assert not torch.equal(student.x0, expected.x0)


def test_only_adapters_change(dtype, family, folder, tmp_path):
    trainer = new_trainer(make_recipe(folder, tmp_path, dtype, family.IMAGE_SIZE), load_adapter(folder))
    base = frozen(trainer.network("teacher"))
    before = {role: [p.clone() for p in trainer.roles.parameters(role).values()] for role in TRAINED_ROLES}
    trainer.iterate()
    after = frozen(trainer.network("teacher"))
    assert base.keys() == after.keys() and all(same(base[name], after[name]) for name in base)
    for role, old in before.items():
        now = list(trainer.roles.parameters(role).values())
        assert all(p.dtype == torch.float32 for p in now)
        assert sum(not torch.equal(p, o) for p, o in zip(now, old, strict=True)) > len(now) / 3


def dense(layer: nn.Linear) -> torch.Tensor:
    """The weight that a quantised layer represents, in fp32."""
    if isinstance(layer, Fp8Linear):
        return layer.weight.float()
    if "bitsandbytes" in type(layer).__module__:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    return layer.weight.dequantize(torch.float32)


def test_a_quantised_weight_is_near_its_own(dtype, sd3_folder):
    """Within half a step: of a row's 127 (int8), of 4 significant bits or of the smallest code (fp8), of the widest gap
    between 16 values, of a block's largest number (nf4)."""
    adapter = load_adapter(sd3_folder)
    exact, network = adapter.load_network(), adapter.load_network()
    quantise(network, dtype, adapter.block_lists)
    own = dict(block_layers(exact, adapter.block_lists))
    for name, layer in block_layers(network, adapter.block_lists):
        weight = own[name].weight.to(torch.bfloat16).float()
        error = (dense(layer) - weight).abs()
        of_row = weight.abs().amax(dim=1, keepdim=True)
        bounds = {
            "int8": of_row * 0.5001 / 127,
            "fp8": torch.maximum(weight.abs() / 16, 2 * of_row / 448 / 1024),
            "nf4": 0.17 * weight.abs().max(),
        }
        assert (error <= bounds[dtype]).all(), name
        assert error.square().mean() > 0
    assert {p.dtype for name, p in network.named_parameters() if name not in own and p.ndim == 1} == {torch.bfloat16}


def test_fp8_keeps_what_has_four_significant_bits_and_rows_of_any_size_and_gives_exact_gradients():
    torch.manual_seed(0)
    layer = nn.Linear(6, 5, dtype=torch.bfloat16)
    # 8 to 15 times 2^e, over the exponents of a row's normal codes; rows far apart, and one of zeros.
    numbers = torch.randint(8, 16, (5, 6)) * 2.0 ** -torch.arange(0, 12, 2) * torch.tensor([1.0, -1.0] * 3)
    layer.weight.data = (numbers * torch.tensor([1.0, 1e-4, 2.0**40, 0.0, -7.0])[:, None]).bfloat16()
    exact = layer.weight.data[[0, 2, 3]].clone()
    stored = Fp8Linear(layer)
    assert torch.equal(stored.weight[[0, 2, 3]], exact)  # factors that are powers of two, or 0
    x = torch.randn(3, 2, 6, dtype=torch.bfloat16, requires_grad=True)
    y = stored(x)
    assert torch.equal(y, nn.functional.linear(x, stored.weight, layer.bias))
    (gradient,) = torch.autograd.grad(y.float().square().sum(), x)
    assert torch.equal(gradient, (2 * y.float()).bfloat16() @ stored.weight)


def test_fp8_is_three_times_as_far_from_normal_weights_as_one_scale_of_whole_numbers():
    layer = nn.Linear(2048, 512)
    layer.weight.data = torch.randn(512, 2048, generator=torch.Generator().manual_seed(0))
    step = layer.weight.abs().amax(dim=1, keepdim=True) / 127
    whole = (layer.weight / step).round() * step
    fp8, int8 = ((w.float() - layer.weight).square().mean().sqrt().item() for w in (Fp8Linear(layer).weight, whole))
    assert (fp8, int8) == (pytest.approx(0.0266, rel=0.02), pytest.approx(0.0083, rel=0.02))


def test_a_run_on_a_quantised_base_resumes_to_the_bit(dtype, sd3_folder, tmp_path):
    recipes = {
        name: make_recipe(
            sd3_folder,
            tmp_path,
            dtype,
            train={"num_updates": number},
            output={"folder": str(tmp_path / name)},
            checkpoint={"every": 2},
        )
        for name, number in (("whole", 3), ("parts", 2))
    }
    whole, _ = (train(recipe, load_adapter(sd3_folder), progress=False) for recipe in recipes.values())
    more = recipes["parts"].model_copy(update={"train": recipes["whole"].train})
    parts = train(more, load_adapter(sd3_folder), resume=True, progress=False)
    mine, theirs = (read_tensors(run / "student" / LORA_FILE) for run in (whole, parts))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def first_rows(recipe: Recipe, adapter) -> dict[str, float]:
    trainer = new_trainer(recipe, adapter)
    return {key: value for key, value in trainer.iterate().items() if key != "seconds"}


@pytest.mark.parametrize("family_name", ["sd3", "sdxl"])
def test_it_trains_as_adapters_on_the_dequantised_weights_do(dtype, family_name, tiny_folder, tmp_path, monkeypatch):
    folder = tiny_folder(family_name)
    quantised_rows = first_rows(make_recipe(folder, tmp_path, dtype), load_adapter(folder))
    checkpointed = make_recipe(folder, tmp_path, dtype, train={"gradient_checkpointing": True})
    assert first_rows(checkpointed, load_adapter(folder)) == pytest.approx(quantised_rows, rel=1e-5)

    adapter = load_adapter(folder)
    network, source = adapter.load_network(), adapter.load_network()
    quantise(source, dtype, adapter.block_lists)
    own = dict(block_layers(network, adapter.block_lists))
    for name, layer in block_layers(source, adapter.block_lists):
        own[name].weight.data = dense(layer)
    monkeypatch.setattr(adapter, "load_network", lambda dtype: network)
    expected = first_rows(make_recipe(folder, tmp_path, "bf16"), adapter)
    if dtype == "fp8":  # exact in bf16
        assert quantised_rows == expected
    # The others differ by what bf16 rounds: where the scale is multiplied, before the sum or after it.
    assert quantised_rows == pytest.approx(expected, rel=0.03, abs=1e-4)


def test_losses_are_those_of_the_exact_weights_up_to_quantisation(dtype, sd3_folder, tmp_path):
    exact = make_recipe(sd3_folder, tmp_path, "fp32", train={"precision": "fp32"})
    expected = first_rows(exact, load_adapter(sd3_folder))
    rows = first_rows(make_recipe(sd3_folder, tmp_path, dtype), load_adapter(sd3_folder))
    losses = [key for key in rows if key.startswith("loss/")]
    assert len(losses) == 3
    for key in losses:
        assert rows[key] == pytest.approx(expected[key], rel={"int8": 0.05, "fp8": 0.2, "nf4": 0.5}[dtype]), key


def picture(model, out) -> np.ndarray:
    generate_folder(str(model), ["a red circle"], out=out, seeds=[0], progress=False)
    return np.asarray(Image.open(next(out.glob("*.png")))).astype(int)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_what_was_trained_goes_on_the_unquantised_base_in_stock_diffusers(dtype, options, sd3_folder, tmp_path):
    run = train(make_recipe(sd3_folder, tmp_path, dtype, lora=options), load_adapter(sd3_folder), progress=False)
    assert sorted(path.name for path in (run / "student").iterdir()) == [LORA_FILE, "student.json"]
    layers = read_tensors(run / "student" / LORA_FILE)
    assert all("lora" in name and t.dtype == torch.float32 for name, t in layers.items())
    ours = picture(run, tmp_path / "ours")
    for kind in ("merged",) if options else ("lora", "merged"):  # a DoRA is exported merged alone
        out = export_run(run, tmp_path / kind, lora=kind == "lora")
        assert np.abs(drawn_by_card(out, sd3_folder) - ours).max() <= 1
    merged, base = (load_adapter(str(place)).load_network().state_dict() for place in (tmp_path / "merged", sd3_folder))
    assert {name: t.shape for name, t in merged.items()} == {name: t.shape for name, t in base.items()}
    moved = [name for name in base if not torch.equal(merged[name], base[name])]
    assert moved and all(name.endswith(".weight") and ".attn" in name for name in moved)


def storage_bytes(network: nn.Module) -> int:
    """Of all that the network keeps."""
    tensors = [t for t in (*network.parameters(), *network.buffers()) if not hasattr(t, "qdata")]
    for t in network.parameters():
        if hasattr(t, "qdata"):
            tensors += [t.qdata, t.scale, t.zero_point]
        if (state := getattr(t, "quant_state", None)) is not None:
            tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    return sum(t.untyped_storage().nbytes() for t in tensors)


def test_the_plan_counts_the_bytes_of_a_quantised_base(dtype, family, folder, tmp_path):
    adapter = load_adapter(folder)
    network = adapter.load_network(torch.bfloat16)
    quantise(network, dtype, adapter.block_lists)
    recipe = make_recipe(folder, tmp_path, dtype, family.IMAGE_SIZE)
    assert network_sizes(resolve(recipe, adapter), adapter).frozen == storage_bytes(network)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_plan_counts_what_an_update_on_a_quantised_base_needs(
    dtype, gradient_checkpointing, sd3_folder, tmp_path, monkeypatch
):
    adapter = load_adapter(sd3_folder)
    options = {"gradient_checkpointing": gradient_checkpointing}
    recipe = make_recipe(sd3_folder, tmp_path, dtype, train=options)
    real = adapter.encode(PROMPTS[:2])[torch.tensor([1, 1])]
    monkeypatch.setattr(adapter, "blank_condition", lambda n: real)
    announced = peak_bytes(resolve(recipe, adapter), adapter)
    trainer = new_trainer(recipe, adapter)
    trainer._student_update()
    if gradient_checkpointing:
        enable_gradient_checkpointing(trainer.roles, (), wrapped=on_gpu)
    with AsOnGpu(), LiveBytes() as live:
        trainer._student_update()
    # What a kernel of bitsandbytes makes within itself is announced and not seen here: at most one weight in bf16.
    unseen = 0 if dtype != "nf4" else max(2 * p.numel() for p in adapter.load_network().parameters())
    assert 0.98 * live.peak <= announced <= 1.05 * live.peak + unseen


@pytest.mark.slow
@pytest.mark.parametrize("family_name", ["sd3", "sdxl"])
def test_two_processes_stay_together(dtype, family_name, tiny_folder, tmp_path):
    in_processes(iterate, make_recipe(tiny_folder(family_name), tmp_path, dtype))


def iterate(recipe: Recipe) -> None:
    trainer = new_trainer(recipe, load_adapter(recipe.model.teacher))
    row = trainer.iterate()
    assert all(map(np.isfinite, row.values()))
    mine = torch.cat([p.detach().flatten() for p in trainer.roles.parameters("student").values()])
    assert torch.equal(*trainer.accelerator.gather(mine[None]))


@pytest.mark.parametrize("dtype", PACKAGES)
@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"lora": {"roles": ["fake_score"]}}, r"needs lora\.roles \[\"student\", \"fake_score\"\]"),
        ({"train": {"shard": True}}, r"and train\.shard exclude each other"),
        ({"train": {"precision": "fp32"}}, r'needs train\.precision "bf16"'),
    ],
)
def test_what_quantised_weights_cannot_do_is_refused(dtype, sections, message, tmp_path):
    with pytest.raises(ValueError, match=f'model.dtype "{dtype}" {message}'):
        make_recipe("anything", tmp_path, dtype, **sections)


@pytest.mark.parametrize("dtype", [dtype for dtype, package in PACKAGES.items() if package])
def test_a_missing_package_is_named_before_anything_is_loaded(dtype, sd3_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    adapter = load_adapter(sd3_folder)
    monkeypatch.setattr(adapter, "load_network", lambda dtype: pytest.fail("loaded a network"))
    recipe = make_recipe(sd3_folder, tmp_path, dtype)
    message = rf'model.dtype "{dtype}" needs {PACKAGES[dtype]}, .*: pip install "dpdmd\[{dtype}\]"'
    with pytest.raises(ValueError, match=message):
        new_trainer(recipe, adapter)
    assert adapter.__dict__.keys().isdisjoint({"texts"})
    assert any("pip install" in note for note in resolve(recipe, adapter).notes)  # a plan is made all the same
