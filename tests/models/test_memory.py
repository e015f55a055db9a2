"""The plan's memory is what an update needs."""

import pytest
import torch
from families import taking_turns
from torch import nn
from torch.nn import functional as F
from trainers import new_trainer

from dpdmd import cli
from dpdmd.method.denoiser import Condition
from dpdmd.models.load import load_adapter, planning_adapter
from dpdmd.planning.cost import num_blocks, num_parameters
from dpdmd.planning.fit import GIB, counter, describe_fit, memory_need, savings
from dpdmd.planning.memory import META, AsOnGpu, LiveBytes, LiveShapes, peak_bytes, picture_bytes
from dpdmd.recipe.plan import Plan
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe
from dpdmd.recipe.toml import load_recipe

PROMPTS = ["a red circle", "one cross"]
SHARED = {"roles": ["student", "fake_score"], "rank": 4}
MIXED = {"roles": ["student"], "rank": 4}
CHECKPOINTED = {"gradient_checkpointing": True}
ACCUMULATED = {"accumulation": 3}
LORA = 'lora.roles=["student", "fake_score"]'
# Published numbers of parameters.
PARAMETERS = {
    "stabilityai/stable-diffusion-3.5-medium": 2_243_171_520,
    "stabilityai/stable-diffusion-xl-base-1.0": 2_567_463_684,
    "black-forest-labs/FLUX.1-dev": 11_901_408_320,
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": 1_604_462_752,
    "Qwen/Qwen-Image": 20_430_401_088,
    "Tongyi-MAI/Z-Image": 6_154_908_736,
    "black-forest-labs/FLUX.2-klein-base-4B": 3_875_544_576,
    "krea/Krea-2-Raw": 12_820_073_036,
    "Alpha-VLLM/Lumina-Image-2.0": 2_609_769_152,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": 859_520_964,
    "stabilityai/stable-diffusion-2-1": 865_910_724,
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": 610_856_096,
    "meituan-longcat/LongCat-Image": 6_270_668_864,
    "baidu/ERNIE-Image": 8_033_490_048,
    "lodestones/Chroma1-HD": 8_899_983_424,
}


@pytest.fixture
def recipe(family, folder, tmp_path):
    """recipe(**sections) of two long-lived samples of the family."""
    height, width = family.IMAGE_SIZE

    def make(**sections) -> Recipe:
        (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
        data = {
            "model": {"teacher": folder, "num_inference_steps": 4, "height": height, "width": width},
            "student": {"num_steps": 3},
            "data": {"prompts": str(tmp_path / "prompts.txt")},
            "train": {"batch_size": 2, "fake_updates": 1},
            "output": {"folder": str(tmp_path / "run")},
        }
        for name, values in sections.items():
            data[name] = data.get(name, {}) | values
        return Recipe.model_validate(data)

    return make


def test_what_is_made_and_freed_is_counted_once():
    before = torch.zeros(1000)
    with LiveBytes() as live:
        a = torch.zeros(100)
        b = a[:50]  # the same storage
        del a
        c = torch.zeros(25)
        assert live.now == live.peak == 500
        del b
        assert (live.now, live.peak) == (100, 500)
        c.add_(1)
        before.mul_(2)  # not made here
    assert live.peak == 500


def test_shapes_alone_need_what_numbers_do():
    def work(device) -> None:
        network = nn.Sequential(nn.Linear(8, 32, device=device), nn.GELU(), nn.LayerNorm(32, device=device))
        x = torch.empty(5, 8, device=device)
        for _ in range(3):  # the second time the result's shape is known
            y = network(x)
            (y.view(-1)[:7].sum() + torch.cat([y, y]).square().mean()).backward()

    peaks = []
    for live, device in ((LiveBytes(), "cpu"), (LiveShapes(), META)):
        with live:
            work(device)
        peaks.append(live.peak)
    assert peaks[0] == peaks[1] > 0


def test_real_tensors_are_computed_next_to_meta_tensors():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    with LiveShapes():
        x = torch.ones(2, 3, device=META)
        assert mask.sum(dim=1).tolist() == [2, 1] and (~mask).sum().item() == 3
        assert torch.where(mask, x, 0.0).is_meta and x[:, : mask.sum(dim=1).tolist()[0]].shape == (2, 2)


def test_shapes_are_computed_with_as_on_a_gpu():
    x, weight = torch.empty(2, 8, device=META), torch.empty(8, 8, device=META)
    with AsOnGpu():
        assert F.linear(x, weight).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            linear = F.linear(x, weight)
            assert (linear.dtype, (linear @ weight).dtype) == (torch.bfloat16, torch.bfloat16)
            assert (F.layer_norm(linear, (8,)).dtype, linear.pow(2).dtype) == (torch.float32, torch.float32)
            assert F.gelu(linear).dtype == torch.bfloat16
        tokens = torch.empty(1, 2, 4096, 8, device=META, requires_grad=True)
        with LiveShapes() as live:
            F.scaled_dot_product_attention(tokens, tokens, tokens).sum().backward()
    assert live.peak < 10 * tokens.nbytes  # the matrix alone is 512 times as large


@taking_turns(
    "mode",
    {
        "copies, accumulated": ("dmd", {}, ACCUMULATED),
        "shared": ("dp_dmd", SHARED, {}),
        "mixed": ("dp_dmd", MIXED, {}),
        "shared, checkpointed": ("dp_dmd", SHARED, CHECKPOINTED),
        "adversarial, copies": ("dmd_adversarial", {}, {}),
    },
)
def test_the_announced_peak_is_the_measured_one(family, folder, recipe, mode, monkeypatch):
    objective, lora, options = mode
    real = {"adversarial": {"num_real": 4}} if objective == "dmd_adversarial" else {}
    settings = recipe(objective={"name": objective, **real}, lora=lora, train=options)
    adapter = load_adapter(folder)
    if options == CHECKPOINTED and not adapter.network_class._supports_gradient_checkpointing:
        pytest.skip("cannot be checkpointed")
    encoded = adapter.encode(PROMPTS)
    shapes = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in encoded.tensors.items()}
    monkeypatch.setattr(
        adapter,
        "blank_condition",
        lambda n: Condition({name: torch.ones(n, *shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}),
    )
    announced = peak_bytes(resolve(settings, adapter), adapter)
    trainer = new_trainer(settings, adapter)
    trainer.iterate()  # makes the moments
    with LiveBytes() as live:
        trainer.iterate()
    # What checkpointing itself keeps, and a discriminator's head, is little, but so is a block of these networks.
    tolerance = 0.1 if objective == "dmd_adversarial" else 0.05 if options == CHECKPOINTED else 0.02
    assert announced == pytest.approx(live.peak, rel=tolerance)


def test_checkpointing_lowers_the_peak(family, folder, recipe):
    adapter = load_adapter(folder)
    plain, checkpointed = (
        peak_bytes(resolve(settings, adapter), adapter)
        for settings in (recipe(lora=SHARED), recipe(lora=SHARED, train={"gradient_checkpointing": True}))
    )
    if adapter.network_class._supports_gradient_checkpointing:
        assert checkpointed < plain


def test_blank_conditions_are_what_prompts_become(folder):
    adapter = load_adapter(folder)
    blank, real = adapter.blank_condition(2).tensors, adapter.encode(PROMPTS).tensors
    assert {name: (t.dtype, t.ndim) for name, t in blank.items()} == {
        name: (t.dtype, t.ndim) for name, t in real.items()
    }
    for name, tensor in blank.items():
        assert tensor.shape[0] == 2 and (tensor.ndim == 2 or tensor.shape[2] == real[name].shape[2])


def test_pictures_need_the_autoencoder_and_what_one_image_takes(folder, recipe):
    adapter, settings = load_adapter(folder), recipe(validation={"every": 10})
    plan = resolve(settings, adapter)
    weights = sum(p.nbytes for p in adapter.vae.parameters())
    with torch.no_grad(), LiveBytes() as live:
        adapter.decode(torch.zeros(1, *plan.latent_shape))
    assert picture_bytes(plan, adapter) == pytest.approx(weights + live.peak, rel=0.02)
    assert picture_bytes(resolve(recipe(validation={"every": 0}), adapter), adapter) == 0


@pytest.mark.parametrize(("model", "number"), PARAMETERS.items())
def test_published_configurations_make_networks_of_the_published_size(model, number):
    assert num_parameters(planning_adapter(model)) == number


def test_stable_diffusion_35_medium_fits_24_gib_with_adapters_on_one_backbone_and_not_as_copies(monkeypatch):
    name, memory = "sd35_medium_lora_24gb", 24 * GIB
    adapter = planning_adapter(load_recipe(name).model.teacher)
    common = ["train.batch_size=1", "model.dtype=fp32", "train.random_step=false", "lora.roles=[]"]

    def plan_with(settings: tuple[str, ...]) -> Plan:
        # Four steps would take twice the time.
        return resolve(load_recipe(name, [*common, "student.num_steps=2", *settings]), adapter)

    adapters = memory_need(plan_with(("model.dtype=bf16", LORA)), adapter)
    assert "per device: fits in 24.0 GiB" in describe_fit(adapters, memory, [])
    # 2,243,171,520 parameters and a table of 384 x 384 x 1536 in bf16, two adapters of fp32 with two moments each.
    rank, layers = 64, (24 + 13) * 4 + 24 * 4 - 1  # image and second attention, text; the last block has no text output
    assert adapters.state == 2 * (2_243_171_520 + 384 * 384 * 1536) + 2 * 3 * 4 * layers * rank * 2 * 1536

    # From here on activations as few as those above; the state alone is too much for copies.
    monkeypatch.setattr("dpdmd.planning.fit.peak_bytes", lambda *_: adapters.peak)
    count = counter(adapter)
    answer = describe_fit(count(plan_with(())), memory, savings(plan_with, count, memory, num_blocks(adapter)))
    assert "per device: does not fit in 24.0 GiB" in answer
    assert answer.splitlines()[-1] == f"so add --set model.dtype=bf16 --set '{LORA}'"


@pytest.mark.slow
def test_plan_states_whether_it_fits_and_what_helps(tiny_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    sets = {"model.teacher": tiny_folder("sd3"), "data.prompts": tmp_path / "prompts.txt"}
    sets |= {"model.height": 32, "model.width": 48, "output.folder": tmp_path / "run", "train.batch_size": 2}
    sets |= {
        "student.num_steps": 2,
        "model.num_inference_steps": 4,
        "objective.anchor.steps": 2,
        "train.fake_updates": 1,
        "model.dtype": "fp32",
        "train.precision": "fp32",
        "train.gradient_checkpointing": "false",
        "train.random_step": "false",
        "lora.roles": "[]",
    }
    arguments = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]

    def plan(*more):
        monkeypatch.setattr("sys.argv", ["dpdmd", "plan", "sd35_medium_lora_24gb", *arguments, *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, capsys.readouterr().out

    code, out = plan("--memory", "100")
    assert code == 0 and "per device: fits in 100.0 GiB" in out and "2 different" in out and "with --set" not in out
    code, out = plan("--memory", "100", "--calibrate")
    assert code == 0 and "measured on this machine (CPU): " in out.splitlines()[-1]
    assert "s per update" in out.splitlines()[-1] and "h for 6000" in out.splitlines()[-1]
    code, out = plan("--memory", "0.0001")
    assert "does not fit in 0.0 GiB" in out and "not on one such device" in out
    helpful = [line for line in out.splitlines() if "with --set" in line]
    assert len(helpful) >= 3 and any("lora.roles" in line for line in helpful)
    assert not (tmp_path / "run").exists()


def test_the_whole_need_counts_gradients_once(folder, recipe):
    settings, adapter = recipe(), load_adapter(folder)
    need = memory_need(resolve(settings, adapter), adapter)
    network = adapter.load_network()
    weights, tables = (sum(t.nbytes for t in tensors) for tensors in (network.parameters(), network.buffers()))
    # three networks and two optimisers; activations and gradients are in the peak
    assert need.state == 7 * weights + 3 * tables
    assert need.peak >= weights


def test_sharding_divides_what_stays_and_gradients_and_gathers_whole_blocks(folder, recipe):
    adapter = load_adapter(folder)
    copied, shared = (resolve(recipe(train={**ACCUMULATED, "shard": shard}), adapter) for shard in (False, True))
    one, four = memory_need(copied, adapter, 4), memory_need(shared, adapter, 4)  # copies need the same anywhere
    network = adapter.load_network()
    lists = (getattr(network, name) for name in adapter.block_lists)
    blocks = [sum(p.nbytes for p in block.parameters()) for blocks in lists for block in blocks]
    weights = sum(p.nbytes for p in network.parameters())
    assert four.state == one.state // 4
    # Gradients of a quarter of the weights; whole are what is outside of blocks, two blocks, and one block's gradients.
    gathered = weights - sum(blocks) + 3 * max(blocks)
    # Garbage that is collected at another moment moves a peak by a thousandth.
    assert four.peak == pytest.approx(one.peak - weights + weights // 4 + gathered, rel=0.01)
