"""Training with a perceptual term: what it moves, what it costs, and the teacher's samples that are kept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import in_processes
from rollouts import teacher_rollout
from tiny_adapter import PictureAdapter
from trainers import new_trainer, train

from dpdmd.method.guidance import Guidance
from dpdmd.method.objective import Objective
from dpdmd.models.load import load_adapter
from dpdmd.planning.cost import describe
from dpdmd.recipe.calls import forwards_per_update
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.toml import flatten, load_recipe
from dpdmd.store.files import read_json
from dpdmd.store.tensors import read_tensors
from dpdmd.training.run.checkpoint import latest_checkpoint
from dpdmd.training.teacher_samples import TeacherSamples
from dpdmd.training.trainer import Trainer
from dpdmd.training.updates import student_loss


@pytest.fixture
def adapter(tmp_path):
    PictureAdapter.save(tmp_path / "teacher")
    return PictureAdapter(tmp_path / "teacher")


@pytest.fixture
def recipe(make_recipe, adapter, tmp_path):
    """recipe(folder, num_pairs=..., **sections) of dmd_perceptual."""

    def make(folder="run", *, weight=0.5, num_pairs=None, cache=None, **sections):
        cache = cache or str(tmp_path / "cache") if num_pairs else "none"
        perceptual = {"weight": weight, "num_pairs": num_pairs}
        sections["data"] = sections.get("data", {}) | {"cache": cache}
        sections["objective"] = {"name": "dmd_perceptual", "perceptual": perceptual}
        return make_recipe(folder, **sections)

    return make


@pytest.fixture
def forwards(monkeypatch, adapter):
    """How many samples have passed through the networks."""
    calls = {"all": 0, "graph": 0}
    predict = adapter.predict

    def spy(network, x_t, t, cond, embedded_guidance=None):
        result = predict(network, x_t, t, cond, embedded_guidance)
        calls["all"] += len(x_t)
        calls["graph"] += len(x_t) if result.x0.requires_grad else 0
        return result

    monkeypatch.setattr(adapter, "predict", spy)
    return calls


def kept_files(folder) -> dict[str, bytes]:
    files = Path(folder).rglob("teacher_samples/*/*.safetensors")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def weights_of(folder) -> dict[str, torch.Tensor]:
    checkpoint, tensors = latest_checkpoint(Path(folder) / "checkpoints"), {}
    for name in ("student", "fake_score", "student_optimizer", "fake_score_optimizer"):
        values = {key: torch.full(shape, torch.nan) for key, shape in checkpoint.shapes(name).items()}
        checkpoint.load(name, values)
        tensors |= {f"{name}/{key}": value for key, value in values.items()}
    return tensors


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def snapshot(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("num_pairs", [None, 6])
def test_two_cycles_move_student_and_fake_score_and_nothing_else(recipe, adapter, num_pairs):
    trainer = new_trainer(recipe(num_pairs=num_pairs), adapter)
    backbone = trainer.plan.objective.terms[1].distance.network
    frozen = {"teacher": trainer.network("teacher"), "autoencoder": adapter.vae, "backbone": backbone}
    before = {name: snapshot(module) for name, module in frozen.items()}
    start = snapshot(trainer.network("student"))
    rows = [trainer.iterate() for _ in range(2)]
    assert all(row["loss/perceptual"] > 0 for row in rows)
    for role in ("student", "fake_score"):
        assert not any(torch.equal(p, start[name]) for name, p in trainer.network(role).named_parameters())
    owned = {id(p) for updater in trainer.updaters.values() for p in updater.parameters}
    for name, module in frozen.items():
        assert_same(snapshot(module), before[name])
        assert all(p.grad is None and id(p) not in owned for p in module.parameters()), name


def test_its_gradient_reaches_every_student_step_and_no_other_network(recipe, adapter):
    trainer = new_trainer(recipe(), adapter)
    reached, student = [], trainer.denoisers.student

    def marked(x_t, t, cond):
        prediction = student(x_t, t, cond)
        prediction.x0.register_hook(lambda grad: reached.append(t[0].item()) if grad.abs().sum() > 0 else None)
        return prediction

    denoisers = replace(trainer.denoisers, student=marked)
    alone = Objective(trainer.plan.objective.terms[1:], detach_first=False)
    student_loss(
        denoisers, replace(trainer.plan, objective=alone), trainer.batches.micro_batch("student", 0, 0)
    ).total.backward()
    assert sorted(reached, reverse=True) == pytest.approx(trainer.plan.student.grid.times[:-1])
    assert all(p.grad.abs().sum() > 0 for p in trainer.network("student").parameters())
    for module in (trainer.network("fake_score"), trainer.network("teacher"), adapter.vae):
        assert all(p.grad is None for p in module.parameters())


def test_the_perceptual_loss_alone_teaches_the_student_its_teachers_samples(recipe, adapter):
    trainer = new_trainer(recipe(num_pairs=4, train={"batch_size": 4, "learning_rate": 1e-2}), adapter)
    alone = replace(trainer.plan, objective=Objective(trainer.plan.objective.terms[1:]))
    batch = trainer.batches.micro_batch("student", 0, 0)
    losses = [
        trainer.updaters["student"].update(0, [lambda: student_loss(trainer.denoisers, alone, batch)])[
            "loss/perceptual"
        ]
        for _ in range(60)
    ]
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("num_pairs", [None, 4])
def test_the_announced_number_of_network_calls_is_what_an_update_takes(
    recipe, adapter, forwards, num_pairs, guidance_scale
):
    settings = recipe(num_pairs=num_pairs, model={"guidance_scale": guidance_scale})
    trainer = new_trainer(settings, adapter)
    trainer.iterate()  # which makes all of the four
    forwards |= {"all": 0, "graph": 0}
    trainer.iterate()
    forward, backward = forwards_per_update(trainer.plan)
    assert forwards == {"all": 4 * forward, "graph": 4 * backward}


def test_the_teacher_is_called_in_the_first_pass_over_the_pool_only(recipe, adapter, forwards):
    counted = []
    trainer = new_trainer(recipe(num_pairs=8, train={"num_updates": 6}), adapter)
    for _ in range(6):
        before = forwards["all"]
        trainer.iterate()
        counted.append(forwards["all"] - before)
    rollout = 4 * 2 * trainer.plan.teacher.grid.num_steps
    assert counted == [counted[-1] + rollout] * 2 + [counted[-1]] * 4
    assert len(kept_files(trainer.plan.data.cache)) == 8


def test_a_kept_sample_is_the_fresh_one_of_the_same_pair(recipe, adapter):
    trainer = new_trainer(recipe(num_pairs=8), adapter)
    batch = trainer.batches.micro_batch("student", 0, 0)
    made, read = trainer.parts.teacher_samples(batch), trainer.parts.teacher_samples(batch)
    args = trainer.denoisers.teacher, adapter.path, batch.noise, batch.cond, batch.uncond
    fresh = teacher_rollout(
        *args, grid=trainer.plan.teacher.grid, guidance=Guidance(trainer.plan.teacher.guidance.scale)
    )
    assert torch.equal(made, fresh) and torch.equal(read, fresh)
    with_kept = student_loss(trainer.denoisers, trainer.plan, batch, teacher_x0=read).total
    assert torch.equal(with_kept, student_loss(trainer.denoisers, trainer.plan, batch).total)
    for later in range(1, 7):  # in another micro-batch with others
        again = trainer.batches.micro_batch("student", later, 0)
        x0 = trainer.parts.teacher_samples(again)
        for i, seed in enumerate(again.noise_seeds):
            if seed in batch.noise_seeds:
                row = batch.noise_seeds.index(seed)
                assert again.prompts[i] == batch.prompts[row] and torch.equal(again.noise[i], batch.noise[row])
                assert torch.equal(x0[i], fresh[row])


class Killed(BaseException):
    """Ends a run as abruptly as a test can."""


@pytest.mark.parametrize("killed_at", [0, 1, 3])
@pytest.mark.parametrize("lost", ["nothing", "half", "everything"])
def test_killed_and_resumed_with_kept_samples_equals_uninterrupted(
    recipe, adapter, monkeypatch, tmp_path, killed_at, lost
):
    """Six pairs in micro-batches of four: the second one has samples of both kinds."""
    settings = {"num_pairs": 6, "train": {"num_updates": 5, "accumulation": 2, "batch_size": 4}}
    whole = train(recipe("whole", cache=str(tmp_path / "one"), **settings), adapter, progress=False)
    parts = recipe("parts", cache=str(tmp_path / "two"), **settings)
    student_update = Trainer._student_update

    def dying(self):
        result = student_update(self)
        if self.step == killed_at:
            raise Killed
        return result

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_student_update", dying)
        train(parts, adapter, progress=False)
    files = sorted(Path(tmp_path / "two").rglob("teacher_samples/*/*.safetensors"))
    for path in {"nothing": [], "half": files[::2], "everything": files}[lost]:
        path.unlink()
    folder = train(parts, adapter, resume=True, progress=False)
    # After a checkpoint, what was lost is made in another micro-batch, where sums are taken in another order.
    if lost == "nothing" or killed_at < 2:
        assert_same(weights_of(whole), weights_of(folder))
        assert kept_files(tmp_path / "one") == kept_files(tmp_path / "two")
    mine, theirs = weights_of(whole), weights_of(folder)
    assert all(torch.allclose(mine[key], theirs[key], atol=1e-5) for key in mine)


def test_other_weights_share_the_samples_and_another_teacher_seed_or_guidance_does_not(recipe, adapter, tmp_path):
    def run(folder, teacher=adapter, **settings):
        before = kept_files(tmp_path / "cache")
        new_trainer(recipe(folder, num_pairs=4, **settings), teacher).iterate()
        return len(kept_files(tmp_path / "cache")) - len(before)

    assert run("one") == 4
    assert run("two", weight=2.0) == 0
    assert run("three", model={"guidance_scale": 3.0}) == 4
    assert run("four", model={"num_inference_steps": 5}) == 4
    assert run("five", train={"seed": 1}) == 4
    PictureAdapter.save(tmp_path / "other", "other weights")
    assert run("six", PictureAdapter(tmp_path / "other")) == 4
    PictureAdapter.save(tmp_path / "same")
    assert run("seven", PictureAdapter(tmp_path / "same")) == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_sample_is_made_again(recipe, adapter, damage):
    settings = recipe(num_pairs=4)
    trainer = new_trainer(settings, adapter)
    batch = trainer.batches.micro_batch("student", 0, 0)
    sample, before = trainer.parts.teacher_samples(batch), kept_files(settings.data.cache)
    path = sorted(Path(settings.data.cache).rglob("teacher_samples/*/*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"cut": content[:-1], "flipped": content, "empty": b""}[damage])
    assert torch.equal(trainer.parts.teacher_samples(batch), sample)
    assert kept_files(settings.data.cache) == before


def test_all_processes_sample_when_one_has_to(recipe, adapter):
    settings = recipe(num_pairs=4)
    trainer = new_trainer(settings, adapter)
    batch, calls = trainer.batches.micro_batch("student", 0, 0), []
    sample = trainer.parts.teacher_samples(batch)
    kept = trainer.parts.teacher_samples

    def again(batch):
        calls.append(batch)
        return torch.full_like(batch.noise, 7.0)

    # This process has all samples, but another lacks some: the rollout takes place, and what was kept stays.
    assert torch.equal(TeacherSamples(kept.store.folder, kept.teacher, again, lambda mine: not mine)(batch), sample)
    assert calls == [batch]


def test_what_cannot_work_is_refused_before_a_network_is_loaded(recipe, adapter, make_recipe, monkeypatch):
    monkeypatch.setattr(adapter, "load_network", lambda: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=r'"dmd_perceptual" needs student\.kind "ode"'):
        recipe(student={"kind": "renoise"})
    with pytest.raises(ValueError, match=r'num_pairs = 4 keeps .* needs data\.cache, got "none"'):
        recipe(num_pairs=4, cache="none")
    for backbone, reason in (
        ("vgg.pth", "is a pickle"),
        ("vgg.safetensors", "is not a readable"),
        ("/no/such", "neither 'scenes'"),
    ):
        objective = {"name": "dmd_perceptual", "perceptual": {"backbone": backbone}}
        with pytest.raises(ValueError, match=reason):
            new_trainer(make_recipe(objective=objective), adapter)
    adapter.vae_factor = 2
    with pytest.raises(ValueError, match="works for the built-in world only, with images of 32 x 32 pixels, got 8 x 8"):
        new_trainer(recipe(), adapter)


def test_the_pool_has_each_pair_once_a_pass_however_it_is_spread(recipe, adapter):
    trainer = new_trainer(recipe(num_pairs=8, train={"batch_size": 4, "accumulation": 2}), adapter)

    def seeds(step, **layout):
        source = replace(trainer.batches, **layout)
        return [
            seed
            for index in range(source.accumulation)
            for rank in range(source.num_processes)
            for seed in replace(source, rank=rank).micro_batch("student", step, index).noise_seeds
        ]

    passes = [seeds(step) for step in range(3)]
    assert len(set(passes[0])) == 8 and all(set(passes[0]) == set(p) for p in passes)
    assert len({tuple(p) for p in passes}) == 3
    assert passes[1] == seeds(1, batch_size=1, accumulation=8)
    assert passes[1] == seeds(1, batch_size=2, accumulation=2, num_processes=2)
    fresh = new_trainer(recipe("other", train={"batch_size": 4, "accumulation": 2}), adapter).batches
    mine, theirs = (source.micro_batch("fake_score", 0, 0, update=1) for source in (trainer.batches, fresh))
    assert mine.prompts == theirs.prompts and torch.equal(mine.noise, theirs.noise)
    assert mine.noise_seeds is None and fresh.micro_batch("student", 0, 0).noise_seeds is None


def recipe_overrides(tmp_path) -> list[str]:
    (tmp_path / "prompts.txt").write_text("a red circle\na blue cross\n")
    small = {"train.num_updates": 2, "train.batch_size": 2, "train.fake_updates": 1, "model.num_inference_steps": 3}
    places = {
        "data.prompts": tmp_path / "prompts.txt",
        "data.cache": tmp_path / "cache",
        "output.folder": tmp_path / "run",
    }
    return [f"{key}={value}" for key, value in (small | places).items()] + ["validation.every=0"]


def test_the_recipe_differs_from_dmds_in_the_objective_and_its_learning_rate_alone():
    dmd, perceptual = (flatten(load_recipe(name)) for name in ("scenes_dmd", "scenes_dmd_perceptual"))
    different = {key for key in dmd if dmd[key] != perceptual[key]}
    assert {key for key in different if not key.startswith("objective.perceptual.")} == {
        "objective.name",
        "train.learning_rate",
        "output.folder",
    }


def test_the_recipe_reports_its_cost_and_trains(tmp_path):
    settings = load_recipe("scenes_dmd_perceptual", recipe_overrides(tmp_path))
    teacher = load_adapter("scenes")
    text = describe(resolve(settings, teacher), teacher)
    assert "scenes, " in text and "decoding and features add to these calls and this memory" in text
    folder = train(settings, teacher, progress=False)
    info = read_json(folder / "student" / "student.json")
    assert (info["objective"], info["updates"]) == ("dmd_perceptual", 2)
    assert all(p.grad is None and not p.requires_grad for p in teacher.vae.parameters())
    start = teacher.load_network().state_dict()
    moved = read_tensors(folder / "student" / "student.safetensors")
    assert any(not torch.equal(moved[name], tensor) for name, tensor in start.items())


def train_pictures(settings, source: str) -> None:
    train(settings, PictureAdapter(source), progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(("num_pairs", "shard"), [(None, False), (6, False), (6, True)])
def test_two_processes_train_what_one_does(recipe, adapter, tmp_path, num_pairs, shard):
    def make(folder, processes, shard=False):
        options = {"batch_size": 2, "accumulation": 4 // processes, "shard": shard}
        return recipe(folder, num_pairs=num_pairs, cache=str(tmp_path / folder), train=options)

    train_pictures(one := make("one", 1), adapter.source)
    in_processes(train_pictures, two := make("two", 2, shard), adapter.source)
    mine, theirs = (weights_of(settings.output.folder) for settings in (one, two))
    for name in mine:
        assert torch.allclose(mine[name], theirs[name], atol=2e-5, rtol=1e-4), name
