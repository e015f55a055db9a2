"""`dpdmd new`, `dpdmd recipes` and `dpdmd plan`: a recipe for a model, offline, and what it costs."""

import tomllib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dpdmd import cli
from dpdmd.models.load import load_adapter, planning_adapter
from dpdmd.planning.fit import GIB, Need, memory_need
from dpdmd.planning.hours import (
    SHARE,
    call_operations,
    card_for,
    decoding_operations,
    describe_hours,
    describe_validation,
    update_operations,
    validation_share,
)
from dpdmd.planning.new import new_recipe
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.toml import load_recipe, recipe_from, shipped_recipes


@pytest.fixture
def dpdmd(monkeypatch, capsys, tmp_path):
    """dpdmd(*arguments): exit code, stdout and stderr of the command line, without a network."""
    monkeypatch.chdir(tmp_path)

    def no_network(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.getaddrinfo", no_network)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["dpdmd", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


def test_recipes_lists_every_shipped_recipe_with_one_line(dpdmd):
    code, out, _ = dpdmd("recipes")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == shipped_recipes()
    assert all(line.rstrip().endswith(".") and 30 < len(line) < 160 for line in out.splitlines())


def test_new_writes_a_recipe_that_loads_fits_as_it_says_and_is_not_overwritten(dpdmd, tmp_path):
    code, out, _ = dpdmd("new", "stabilityai/stable-diffusion-3.5-medium", "--memory", 24, "--out", "my.toml")
    assert code == 0 and "note:" not in out and "dpdmd train my.toml" in out
    text = (tmp_path / "my.toml").read_text()
    recipe = load_recipe(tmp_path / "my.toml")
    assert recipe.lora.roles == ("student", "fake_score") and recipe.model.dtype == "bf16"
    assert recipe.output.folder == "runs/my" and recipe.validation.every > 0 and recipe.student.num_steps == 4
    adapter = planning_adapter(recipe.model.teacher)
    need = memory_need(resolve(recipe, adapter), adapter).total / GIB
    assert f"# Memory: {need:.1f} GiB, which fits" in text and need < 24
    code, _, err = dpdmd("new", "scenes", "--out", "my.toml")
    assert code == 2 and "my.toml exists already" in err
    assert (tmp_path / "my.toml").read_text() == text


def test_new_for_several_devices_shards_the_networks_and_shares_the_samples(dpdmd, tmp_path):
    code, out, err = dpdmd("new", "scenes", "--memory", 24, "--full", "--gpus", 4, "--out", "four.toml")
    assert code == 0, err
    assert "dpdmd plan four.toml --memory 24 --gpus 4" in out
    assert "torchrun --nproc-per-node=4 -m dpdmd train four.toml" in out
    four, head = load_recipe(tmp_path / "four.toml"), (tmp_path / "four.toml").read_text()
    alone = load_recipe("scenes_dp_dmd").train
    assert four.train.shard and 4 * four.train.batch_size * four.train.accumulation == alone.batch_size
    assert "for 4 devices of 24 GiB" in head and "--full --gpus 4`" in head and "GiB on each, which fits" in head
    adapter = planning_adapter("scenes")
    one, each = (memory_need(resolve(four, adapter), adapter, number) for number in (1, 4))
    assert each.state == one.state // 4
    code, plan, _ = dpdmd("plan", "four.toml", "--memory", 24, "--gpus", 4)
    assert code == 0 and f"{each.total / GIB:.2f} GiB per device: fits" in plan
    code, _, err = dpdmd("new", "scenes", "--gpus", 3, "--out", "three.toml")
    assert code == 2 and "3 devices cannot share the 32 samples of an update evenly" in err


@pytest.mark.parametrize(("gib", "optimiser"), [(60, "adamw_8bit"), (30, "adamw_offloaded")])
def test_new_changes_the_optimiser_for_who_wants_all_weights_and_else_takes_adapters(gib, optimiser, monkeypatch):
    """As if only AdamW's moments were large."""
    moments = {"adamw": 80, "adamw_8bit": 20, "adamw_offloaded": 0}

    def count(plan):
        return Need(GIB if plan.lora.roles else (20 + moments[plan.optimiser.optimiser]) * GIB, GIB)

    monkeypatch.setattr("dpdmd.planning.new.counter", lambda *_: count)
    adapter = planning_adapter("scenes")
    default, wanted = (
        new_recipe("scenes", adapter, memory=gib * GIB, name="my", trained=trained) for trained in (None, "all")
    )
    assert default.fits and default.plan.lora.roles and "optimiser" not in default.text
    assert wanted.fits and not wanted.plan.lora.roles and wanted.plan.optimiser.optimiser == optimiser
    assert f'optimiser = "{optimiser}"  # moments take less of the device' in wanted.text


def test_every_comment_of_new_is_on_a_key_and_the_text_says_what_its_settings_say(dpdmd, tmp_path):
    dpdmd("new", "scenes", "--out", "my.toml")
    data = tomllib.loads((tmp_path / "my.toml").read_text())
    assert recipe_from(data, where="x") == load_recipe(tmp_path / "my.toml")
    shipped = load_recipe("scenes_dp_dmd", ["output.folder=runs/my", "student.shift="])
    written = load_recipe(tmp_path / "my.toml")
    # The same settings as in the shipped recipe of the built-in teacher, up to what only it knows.
    assert written.objective == shipped.objective and written.train == shipped.train


def test_a_name_that_is_no_model_is_refused_at_once_with_the_nearest(dpdmd, tmp_path):
    (tmp_path / "my_model").mkdir()
    for name, message in (
        ("my_modl", "did you mean my_model?"),
        ("scene", "did you mean scenes?"),
        ("runs/x", "runs/x does not exist: the working directory has no folder runs"),
        ("./my_modl", "did you mean my_model?"),
    ):
        code, _, err = dpdmd("new", name, "--out", "x.toml")
        assert code == 2 and message in err, err


def test_plan_and_dry_run_say_the_same_of_memory_disk_and_hours(dpdmd, tmp_path):
    sets = ("--set", "train.num_updates=20", "--set", f"output.folder={tmp_path / 'run'}")
    code, plan, _ = dpdmd("plan", "scenes_dp_dmd", *sets)
    assert code == 0 and dpdmd("train", "scenes_dp_dmd", "--dry-run", *sets)[:2] == (0, plan)
    lines = {line.partition(": ")[0]: line for line in plan.splitlines()}
    assert "GiB at most, for embeddings and checkpoints" in lines["disk"]
    assert "for 20 updates" in lines["time"] and "calculated for one" in lines["time"]
    assert "fits in" in plan and not (tmp_path / "run").exists()


def test_operations_are_those_of_the_layers_in_closed_form():
    recipe = load_recipe("sd35_medium_lora_24gb", ["lora.roles=[]", "train.gradient_checkpointing=false"])
    adapter = planning_adapter(recipe.model.teacher)
    forward, backward = call_operations(resolve(recipe, adapter), adapter)
    image, text, width, blocks, dual = 64 * 64, 77 + 256, 1536, 24, 13
    # Each token meets 4 projections and an MLP of 8 width^2 weights in its stream; the last block has no text output.
    joint = blocks * (image + text) * 12 * width**2 - text * (1 + 8) * width**2
    second = dual * image * 4 * width**2
    attention = blocks * 2 * (image + text) ** 2 * width + dual * 2 * image**2 * width
    assert forward == pytest.approx(2 * (joint + second + attention), rel=0.01)  # the rest is modulation and embedding
    assert backward == pytest.approx(2 * forward, rel=0.01)


def test_validation_takes_the_share_of_operations_that_is_stated(monkeypatch):
    recipe = load_recipe("scenes_dp_dmd")
    adapter = load_adapter(recipe.model.teacher)
    plan = resolve(recipe, adapter)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        adapter.decode(torch.zeros(1, *plan.latent_shape))
    assert decoding_operations(plan, adapter) == counter.get_total_flops() > 0
    forward, decoding = call_operations(plan, adapter)[0], counter.get_total_flops()
    training = 300 * update_operations(plan, adapter)
    # 30 guided steps of the teacher; 4 of the student, averaged and live, in 6 validations; each is denoised once.
    once, share = validation_share(plan, adapter)
    assert once == pytest.approx(16 * (62 * forward + decoding) / training)
    assert share == pytest.approx(6 * 16 * 2 * (6 * forward + decoding) / training)
    stated = (
        f"16 pictures every 50 updates and after the last, {100 * share:.2g} % of the operations of training, and "
        f"{100 * once:.2g} % once"
    )
    assert describe_validation(plan, adapter).startswith(stated) and share + once < 0.05
    often = load_recipe("scenes_dp_dmd", ["validation.every=1"])
    assert "a larger validation.every than 1 takes less" in describe_validation(resolve(often, adapter), adapter)
    odd = load_recipe("scenes_dp_dmd", ["train.num_updates=301"])
    assert validation_share(resolve(odd, adapter), adapter)[1] == pytest.approx(share * 7 / 6 * 300 / 301)
    never = load_recipe("scenes_dp_dmd", ["train.num_updates=20"])
    assert describe_validation(resolve(never, adapter), adapter) == (
        "none: the 20 updates are fewer than validation.every (50)"
    )
    short = load_recipe("scenes_dp_dmd", ["train.num_updates=5", "validation.every=0"])
    assert describe_validation(resolve(short, adapter), adapter) == "off"
    unsaid = short.model_copy(update={"validation": short.validation.model_copy(update={"every": None})})
    assert "off, since one would take more than 5% of such a short" in describe_validation(
        resolve(unsaid, adapter), adapter
    )


def test_hours_are_operations_at_a_share_of_the_peak_of_a_card_with_that_memory():
    recipe = load_recipe("sd35_medium_lora_24gb")
    adapter = planning_adapter(recipe.model.teacher)
    plan = resolve(recipe, adapter)
    card = card_for(24)
    hours = update_operations(plan, adapter) * 6000 / (SHARE * card.bf16 * 1e12) / 3600
    assert card.name == "GeForce RTX 4090" and (card_for(23.5), card_for(200).name) == (card, "H200")
    assert describe_hours(plan, adapter, 24).startswith(f"{hours:.0f} h for 6000 updates")
