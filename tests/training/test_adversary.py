"""Training with a discriminator: who changes, on what, in which order, and what counts as real."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from rollouts import teacher_rollout
from tiny_adapter import PROMPTS, PictureAdapter
from torch.testing import assert_close
from trainers import new_trainer, train

from dpdmd.method.guidance import Guidance
from dpdmd.method.randomness import generator, image_noise
from dpdmd.training import adversary, parts, trainer
from dpdmd.training.adversary import RealSamples, over_processes
from dpdmd.training.trainer import Trainer
from dpdmd.training.updates import student_loss

COPIES, SHARED = {}, {"roles": ["student", "fake_score"], "rank": 4}
TRAINED = ("student", "fake_score", "discriminator")


@pytest.fixture
def make_trainer(make_recipe, adapter):
    def make(adversarial=None, **sections) -> Trainer:
        adversarial = {"num_real": 8, "weight": 0.5} | (adversarial or {})
        objective = {"name": "dmd_adversarial", "adversarial": adversarial}
        return new_trainer(make_recipe(objective=objective, **sections), adapter)

    return make


def values(trainer, name):
    return [p.detach().clone() for p in trainer.updaters[name].parameters]


def moved(trainer, name, before):
    return any(not torch.equal(a, b) for a, b in zip(values(trainer, name), before, strict=True))


@pytest.mark.parametrize("features", ["fake_score", "teacher"])
@pytest.mark.parametrize("lora", [COPIES, SHARED], ids=["copies", "shared"])
def test_every_update_changes_its_own_weights_and_no_others(make_trainer, lora, features):
    trainer = make_trainer({"features": features}, lora=lora)
    frozen = {name: p.detach().clone() for name, p in trainer.network("teacher").named_parameters()}
    trainer.iterate()  # now the head's output is not zero, and the student's term has a gradient
    order = []
    for name, updater in trainer.updaters.items():
        step = updater.optimizer.step

        def spied(name=name, step=step):
            before = {other: values(trainer, other) for other in TRAINED}
            step()
            order.append(name)
            assert {other: moved(trainer, other, before[other]) for other in TRAINED} == {
                other: other == name for other in TRAINED
            }

        updater.optimizer.step = spied
    trainer.iterate()
    assert order == 2 * ["fake_score", "discriminator"] + ["student"]
    for name, p in trainer.network("teacher").named_parameters():
        if "lora_" not in name:
            assert torch.equal(p, frozen[name]), name


@pytest.mark.parametrize("features", ["fake_score", "teacher"])
@pytest.mark.parametrize("lora", [COPIES, SHARED], ids=["copies", "shared"])
def test_each_loss_gives_gradient_to_its_owner_only(make_trainer, lora, features):
    trainer = make_trainer({"features": features}, lora=lora)
    trainer.iterate()

    def owners(loss):
        loss.total.backward()
        every = {id(p): p for name in TRAINED for p in trainer.updaters[name].parameters}
        every |= {id(p): p for network in trainer.roles.modules.values() for p in network.parameters()}
        found = {
            name
            for name in TRAINED
            if any(p.grad is not None and p.grad.any() for p in trainer.updaters[name].parameters)
        }
        strangers = every.keys() - {id(p) for name in found for p in trainer.updaters[name].parameters}
        assert all(every[key].grad is None for key in strangers)
        for p in every.values():
            p.grad = None
        return found

    batch = trainer.batches.micro_batch("student", 1, 0)
    assert owners(student_loss(trainer.denoisers, trainer.plan, batch)) == {"student"}
    only = replace(trainer.plan.objective, terms=trainer.plan.objective.terms[1:])
    assert owners(student_loss(trainer.denoisers, replace(trainer.plan, objective=only), batch)) == {"student"}
    loss = trainer.parts.adversary.loss(batch, torch.randn(4, 4, 4, 4), update=0)
    assert owners(loss) == {"discriminator"}


@pytest.mark.parametrize("detach_first", [False, True])
def test_after_a_cut_the_term_does_not_reach_the_step_before(make_trainer, detach_first):
    trainer = make_trainer()
    trainer.iterate()
    reached, calls, student = [], [], trainer.denoisers.student

    def marked(x_t, t, cond):
        prediction = student(x_t, t, cond)
        index = len(calls)
        calls.append(index)
        if prediction.x0.requires_grad:
            prediction.x0.register_hook(lambda grad: reached.append(index) if grad.any() else None)
        return prediction

    denoisers = replace(trainer.denoisers, student=marked)
    terms = trainer.plan.objective.terms[1:]
    objective = replace(trainer.plan.objective, terms=terms, detach_first=detach_first)
    batch = trainer.batches.micro_batch("student", 1, 0)
    student_loss(denoisers, replace(trainer.plan, objective=objective), batch).total.backward()
    assert sorted(set(reached)) == list(range(int(detach_first), 3))


def test_the_students_loss_is_dmd_plus_the_weighted_term(make_trainer):
    trainer = make_trainer()
    trainer.iterate()
    loss = student_loss(trainer.denoisers, trainer.plan, trainer.batches.micro_batch("student", 1, 0))
    assert_close(loss.total, loss.log["loss/dmd"] + 0.5 * loss.log["loss/adversarial"])


def test_the_head_changes_nothing_about_the_fake_score(make_trainer, make_recipe, adapter):
    mine = make_trainer().iterate()
    theirs = new_trainer(make_recipe(objective={"name": "dmd"}), adapter).iterate()
    assert mine["loss/fake_score"] == theirs["loss/fake_score"]
    assert {"loss/discriminator", "grad_norm/discriminator", "health/discriminator_accuracy"} <= mine.keys()


def test_a_head_that_is_not_finite_stops_before_its_step_and_names_its_own_rate(make_trainer):
    trainer = make_trainer()
    trainer.parts.adversary.real = RealSamples(torch.full((8, 4, 4, 4), float("nan")), [PROMPTS[0]] * 8)
    before = values(trainer, "discriminator")
    message = r"the discriminator update of step 1 is not finite .*lower objective\.adversarial\.learning_rate"
    with pytest.raises(FloatingPointError, match=message):
        trainer.iterate()
    assert not moved(trainer, "discriminator", before)


def test_the_heads_rate_is_its_own(make_trainer):
    assert make_trainer().updaters["discriminator"].peak == 2e-3
    assert make_trainer({"learning_rate": 7e-3}).updaters["discriminator"].peak == 7e-3


def test_the_discriminator_sees_uniform_noise_levels_whatever_the_scores_see(make_recipe, adapter, recorder):
    objective = {"name": "dmd_adversarial", "tau_shift": 6.0, "adversarial": {"num_real": 8}}
    trainer = new_trainer(make_recipe(objective=objective), adapter)
    spy = recorder(trainer.denoisers.discriminator.features)
    seen = replace(trainer.denoisers.discriminator, features=spy)
    trainer.denoisers, trainer.parts.adversary.discriminator = replace(trainer.denoisers, discriminator=seen), seen
    for _ in range(3):
        trainer.iterate()
    for _, tau, _ in spy.calls:  # two updates of the head and one of the student, three times
        assert ((tau[:4] - 0.02) / 0.96 * 4).floor().sort().values.tolist() == [0, 1, 2, 3]
    assert len(spy.calls) == 9


def test_it_distinguishes_the_students_samples_from_shifted_ones(make_trainer):
    trainer = make_trainer({"features": "teacher", "learning_rate": 3e-2})
    real = torch.randn(64, 4, 4, 4, generator=generator(0, "real")) + 1.0
    trainer.parts.adversary.real = RealSamples(real, [PROMPTS[0]] * 64)
    rows = [row for _ in range(15) for row in trainer._fake_updates()]
    assert rows[0]["loss/discriminator"] == pytest.approx(2 * 0.6931, rel=1e-3)
    last = rows[-10:]
    assert sum(row["loss/discriminator"] for row in last) / 10 < 0.8
    assert sum(row["health/discriminator_accuracy"] for row in last) / 10 > 0.8


def test_real_and_drawn_samples_share_their_noise_levels_and_nothing_else(make_trainer, recorder):
    trainer = make_trainer()
    adversary = trainer.parts.adversary
    spy = recorder(adversary.discriminator.features)
    adversary.discriminator = replace(adversary.discriminator, features=spy)
    adversary.real = RealSamples(torch.full((9, 4, 4, 4), -5.0), 9 * [PROMPTS[2]])
    other = trainer.parts.adapter.encode(4 * [PROMPTS[2]])
    batch = trainer.batches.micro_batch("fake_score", 0, 0)
    log = adversary.loss(batch, torch.full((4, 4, 4, 4), 5.0), update=0).log
    ((x_tau, tau, cond),) = spy.calls
    assert spy.grad_enabled == [False]
    assert torch.equal(tau[:4], tau[4:])
    scaled = (1 - tau)[:, None, None, None] * 5.0
    noise = (x_tau - scaled * torch.tensor([-1.0, 1.0]).repeat_interleave(4)[:, None, None, None]).split(4)
    drawn = [part / tau[:4, None, None, None] for part in noise]
    assert all(part.std().item() == pytest.approx(1, rel=0.15) and abs(part.mean()) < 0.2 for part in drawn)
    assert not torch.equal(*drawn)
    for rows, expected in ((slice(0, 4), other), (slice(4, 8), batch.cond)):
        assert torch.equal(cond.tensors["embeds"][rows], expected.tensors["embeds"])
    assert set(log) == {"loss/discriminator", "health/discriminator_accuracy"}


def test_the_head_is_updated_on_the_samples_of_the_fake_score(make_trainer, monkeypatch):
    seen = {"fake": [], "head": []}
    places = ((trainer, "fake_score_loss", "fake", 3), (adversary.Adversary, "loss", "head", 2))
    for module, name, key, place in places:
        real = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *args, _real=real, _key=key, _place=place, **options: (
                seen[_key].append(args[_place]),
                _real(*args, **options),
            )[1],
        )
    make_trainer(train={"accumulation": 3}).iterate()
    assert len(seen["fake"]) == len(seen["head"]) == 6
    assert all(a is b for a, b in zip(seen["fake"], seen["head"], strict=True))


@pytest.mark.parametrize("batch_size", [3, 4])
def test_the_teachers_samples_are_its_guided_rollouts_of_named_noise(make_trainer, batch_size):
    trainer = make_trainer({"num_real": 10}, train={"batch_size": batch_size})
    real = trainer.parts.adversary.real
    assert len(real.latents) == len(real.prompts) == 10
    assert set(real.prompts) == set(PROMPTS)  # the first pass through seven
    noise = image_noise([generator(0, "pair_noise", i).initial_seed() for i in range(10)], (4, 4, 4))
    for i in (0, 6, 9):
        expected = teacher_rollout(
            trainer.denoisers.teacher,
            trainer.parts.adapter.path,
            noise[i : i + 1],
            trainer.parts.adapter.encode([real.prompts[i]]),
            trainer.parts.adapter.encode([""]),
            grid=trainer.plan.teacher.grid,
            guidance=Guidance(2.0),
        )
        assert_close(real.latents[i : i + 1], expected, atol=1e-5, rtol=1e-5)


def test_with_a_cache_the_teachers_samples_are_drawn_once_for_all_runs(make_recipe, tmp_path, monkeypatch):
    PictureAdapter.save(tmp_path / "teacher")
    objective = {"name": "dmd_adversarial", "adversarial": {"num_real": 6}}

    def real(**sections):
        recipe = make_recipe(objective=objective, data={"cache": str(tmp_path / "cache")}, **sections)
        return new_trainer(recipe, PictureAdapter(tmp_path / "teacher")).parts.adversary.real

    first, files = real(), len(list(tmp_path.rglob("teacher_samples/*/*.safetensors")))
    monkeypatch.setattr(parts, "sample_teacher", lambda teacher, batch: pytest.fail("drew it again"))
    second = real(train={"learning_rate": 5e-3})
    assert files == 6
    assert torch.equal(first.latents, second.latents) and first.prompts == second.prompts


def test_real_samples_are_drawn_with_their_own_prompts(adapter):
    real = RealSamples(torch.arange(7.0).reshape(7, 1, 1, 1), PROMPTS)
    x0, cond = real.draw(200, generator(0, "draw"), adapter.encode, torch.device("cpu"))
    rows = x0.flatten().long()
    assert set(rows.tolist()) == set(range(7))
    assert torch.equal(cond.tensors["embeds"], adapter.encode(PROMPTS).tensors["embeds"][rows])
    again, _ = real.draw(200, generator(0, "draw"), adapter.encode, torch.device("cpu"))
    assert torch.equal(x0, again)


@pytest.mark.parametrize("size", [1, 3, 10, 16])
def test_rows_are_made_once_each_in_order(size):
    class Alone:
        num_processes, process_index, is_main_process = 1, 0, True
        gather = staticmethod(lambda tensor: tensor)

    made = over_processes(10, size, lambda rows: torch.tensor(rows), Alone, "rows")
    assert made.tolist() == list(range(10))


@pytest.fixture
def images(tmp_path):
    """A folder of three images, two with prompts."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in (("a.png", (255, 0, 0)), ("b.jpg", (0, 255, 0)), ("c.png", (0, 0, 255))):
        Image.new("RGB", (20, 12), colour).save(folder / name)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "prompt": "a red picture"}) + "\n")
    (folder / "b.txt").write_text("a green picture\n")
    return folder


def test_images_are_real_with_their_own_prompts(make_trainer, images, adapter):
    trainer = make_trainer({"real": str(images)})
    assert trainer.parts.adversary.real.prompts == ["a red picture", "a green picture", ""]
    assert trainer.parts.adversary.real.latents.shape == (3, 4, 4, 4)
    assert_close(trainer.parts.adversary.real.latents[0, :3].amax(dim=(1, 2)), torch.tensor([1.0, -1.0, -1.0]))
    row = trainer.iterate()
    assert "loss/discriminator" in row
    assert "a red picture" in adapter.encoded


def test_a_run_on_images_resumes_and_refuses_other_images(make_recipe, adapter, images):
    objective = {"name": "dmd_adversarial", "adversarial": {"real": str(images)}}
    train(make_recipe(objective=objective, train={"num_updates": 1}), adapter, progress=False)
    train(make_recipe(objective=objective, train={"num_updates": 2}), adapter, resume=True, progress=False)
    (images / "b.txt").write_text("another green picture")
    with pytest.raises(ValueError, match="other images"):
        train(make_recipe(objective=objective, train={"num_updates": 3}), adapter, resume=True, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"real": "/nowhere"}, r"objective\.adversarial\.real: no such folder of images: /nowhere"),
    ],
)
def test_impossible_settings_fail_before_a_network_is_loaded(make_trainer, adapter, monkeypatch, settings, message):
    monkeypatch.setattr(adapter, "load_network", lambda: pytest.fail("loaded a network"))
    with pytest.raises(ValueError, match=message):
        make_trainer(settings)


def test_processes_compare_their_images_before_any_is_read(make_trainer, images, monkeypatch):
    compared = {}
    monkeypatch.setattr(parts, "require_equal", compared.update)
    monkeypatch.setattr(parts, "image_samples", lambda *args: pytest.fail(compared["images_hash"]))
    hashes = []
    for _ in range(2):
        with pytest.raises(pytest.fail.Exception) as failure:
            make_trainer({"real": str(images)})
        hashes.append(str(failure.value))
        (images / "b.txt").write_text("another green picture")
    assert hashes[0] != hashes[1]


def test_a_broken_image_fails_before_a_network_is_loaded(make_trainer, adapter, images, monkeypatch):
    monkeypatch.setattr(adapter, "load_network", lambda: pytest.fail("loaded a network"))
    (images / "c.png").write_bytes((images / "c.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"objective\.adversarial\.real: .*c\.png is not a readable image"):
        make_trainer({"real": str(images)})


def test_bf16_and_backward_simulation_go_with_it(make_trainer):
    for sections in (
        {"train": {"precision": "bf16"}},
        {"student": {"kind": "renoise"}},
        {"train": {"random_step": True}},
    ):
        trainer = make_trainer(**sections)
        for _ in range(2):
            row = trainer.iterate()
        assert row["loss/adversarial"] > 0 and row["loss/discriminator"] > 0
        assert {p.dtype for p in trainer.updaters["discriminator"].parameters} == {torch.float32}
