import pytest

from dpdmd.compare.arms import Arm, parse_budget
from dpdmd.compare.plan import Teacher, plan_students, require_features, shared_teacher
from dpdmd.evaluate import run
from dpdmd.world.prompts import evaluation_prompts

STEPS = parse_budget("7 steps")


def plan(*recipes, names=(), sets=(), budget=STEPS):
    return plan_students(list(recipes), names=list(names), sets=list(sets), budget=budget)


def test_every_arm_has_the_budget_then_its_own_settings_then_those_of_all():
    plain, other = plan("scenes_dmd", "scenes_dmd:train.warmup=2", sets=["train.warmup=1", "checkpoint.keep=3"])
    assert plain.overrides == {
        "checkpoint.students": "true",
        "checkpoint.keep": "3",
        "validation.every": "0",
        "train.warmup": "1",
        "train.num_updates": 7,
    }
    assert other.overrides == plain.overrides | {"train.warmup": "2"}


def test_names():
    assert [arm.name for arm in plan("scenes_dmd", "scenes_dp_dmd", names=["DMD", "ours"])] == ["DMD", "ours"]
    for recipes, names, message in (
        (
            ["scenes_dmd", "scenes_dmd"],
            [],
            "arms need different names, got scenes_dmd, scenes_dmd; name them with --name",
        ),
        (["scenes_dmd", "scenes_dp_dmd"], ["a"], "give --name once for each of the 2 recipes or not at all; got 1"),
        (["scenes_dmd"], ["teacher"], "an arm cannot be called 'teacher'"),
        (["scenes_dmd"], ["../x"], "an arm cannot be called '../x'"),
        (["scenes_dmd"], [".."], "an arm cannot be called"),
        (["scenes_dmd"], [""], "an arm cannot be called"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(*recipes, names=names)


def test_what_the_comparison_settles_is_no_setting_of_all_arms():
    with pytest.raises(ValueError, match=r"--set: train.num_updates is the same for all arms, set by --budget"):
        plan("scenes_dmd", sets=["train.num_updates=3"])


@pytest.mark.parametrize("wrong", ["[train]\nnum_updates = nan", "[validation]\nevery = 101000001"])
def test_a_recipe_whose_mistake_the_comparison_would_hide_is_refused(wrong, tmp_path):
    """The key is one that every arm is given by the comparison."""
    path = tmp_path / "r.toml"
    path.write_text(f'[model]\nteacher = "scenes"\n[data]\nprompts = "scenes"\n{wrong}\n')
    with pytest.raises(ValueError, match="cannot be used, one problem"):
        plan(str(path))


def test_arms_share_a_teacher_which_is_sampled_as_they_have_it():
    teacher = shared_teacher(plan("scenes_dmd", "scenes_dp_dmd"))
    assert teacher == Teacher("scenes", 3.5, 30, few_steps=4)
    assert [arm.sampling for arm in teacher.arms()] == [
        ("--guidance-scale", "3.5", "--num-inference-steps", "30"),
        ("--guidance-scale", "3.5", "--num-inference-steps", "4"),
    ]
    assert teacher.arm("guidance-2", 2.0).sampling == ("--guidance-scale", "2", "--num-inference-steps", "30")
    different = shared_teacher(plan("scenes_dmd", "scenes_dp_dmd:student.num_steps=2"))
    assert different.few_steps is None and [arm.name for arm in different.arms()] == ["teacher"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            "scenes_eps_dp_dmd",
            "share the teacher.* scenes_dmd has scenes, guidance 3.5, 30 steps; scenes_eps_dp_dmd has",
        ),
        ("scenes_dp_dmd:model.guidance_scale=2", "share the teacher, LoRAs, guidance"),
        ("scenes_dp_dmd:model.negative_prompt=fog", "share the teacher.* 30 steps, negative prompt 'fog'"),
        ("scenes_dp_dmd:model.num_inference_steps=20", "number of steps: .*, 30 steps; .*, 20 steps"),
        (
            "scenes_dp_dmd:objective.anchor.evry=2",
            "objective.anchor.evry is not a key .* did you mean objective.anchor.every",
        ),
        (
            "scenes_dp_dmd:objective.anchor.steps=30",
            r"arm scenes_dp_dmd\+steps=30: .*must be below the teacher's 30 steps",
        ),
        ("scenes_dp_dmd:data.prompts=/nowhere.txt", "cannot read /nowhere.txt"),
        ("scenes_dp_dmd:model.height=64,model.width=64", "samples the teacher in its own size"),
        ("nothing", "no recipe file nothing, no run and no shipped recipe"),
    ],
)
def test_what_cannot_be_compared_is_refused(recipe, message):
    with pytest.raises(ValueError, match=message):
        shared_teacher(plan("scenes_dmd", recipe))


def test_the_teacher_is_drawn_with_the_negative_prompt_of_the_recipes():
    teacher = shared_teacher(plan("scenes_dmd:model.negative_prompt=fog", "scenes_dp_dmd:model.negative_prompt=fog"))
    assert teacher.arm().sampling[-2:] == ("--negative-prompt", "fog")
    assert "--negative-prompt" not in teacher.arm(guidance_scale=1.0).sampling


def test_without_features_nothing_begins(monkeypatch):
    def none(name, **_):
        if name != "scenes":
            raise ValueError(f"cannot load {name}")

    monkeypatch.setattr(run, "load_extractor", lambda name, **options: none(name) or object())
    world, other = Teacher("scenes", 3.5, 30), Teacher("some/model", 3.5, 30)
    require_features("auto", world, evaluation_prompts())
    for teacher, prompts in ((world, ["a photo of a dog"]), (other, evaluation_prompts())):
        with pytest.raises(ValueError, match="none was found; name one with --features"):
            require_features("auto", teacher, prompts)
    with pytest.raises(ValueError, match="cannot load mine"):
        require_features("mine", world, evaluation_prompts())


def test_settings_of_python_and_of_a_command_line_read_alike():
    assert Arm("a", "r", {"train.random_step": True, "train.warmup": 3}).settings() == [
        "train.random_step=true",
        "train.warmup=3",
    ]
