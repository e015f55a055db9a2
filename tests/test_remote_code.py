"""Code that comes with a model is never run: a canary in every folder that is read, and a "y" on the terminal."""

import io
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from dpdmd import cli
from dpdmd.models.load import built_in_teacher
from dpdmd.store.files import read_json, write_json

CODE = "import pathlib\npathlib.Path({canary!r}).write_text('ran')\nclass Own:\n    from_pretrained = print\n"
AUTO_MAP = {
    "AutoConfig": "own.Own",
    "AutoModel": "own.Own",
    "AutoTokenizer": ["own.Own", "own.Own"],
    "AutoImageProcessor": "own.Own",
    "AutoModelForCausalLM": "own.Own",
}

TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Call `dpdmd ARGUMENTS` with "y" on the terminal, and see that the canary is alive."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["dpdmd", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        assert not (tmp_path / "canary").exists(), "the model's own code has run"
        return code

    return call


def add_code(folder: Path, canary: Path) -> None:
    (folder / "own.py").write_text(CODE.format(canary=str(canary)), encoding="utf-8")


@pytest.fixture
def network(tmp_path):
    """The folder of a network of an own class, or of a known one, with code of its own."""

    def make(model_type: str) -> Path:
        folder = tmp_path / f"network_{model_type}"
        folder.mkdir()
        # A known network without sizes is one of gigabytes.
        config = {"model_type": model_type, "auto_map": AUTO_MAP, "architectures": ["Own"]} | TINY
        write_json(folder / "config.json", config)
        write_json(folder / "preprocessor_config.json", {"auto_map": AUTO_MAP, "image_processor_type": "Own"})
        write_json(folder / "tokenizer_config.json", {"auto_map": AUTO_MAP, "tokenizer_class": "Own"})
        (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        add_code(folder, tmp_path / "canary")
        return folder

    return make


@pytest.fixture
def images(tmp_path) -> Path:
    for i in range(2):
        (tmp_path / "images" / "a cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (i, 0, 0)).save(tmp_path / "images" / "a cat" / f"{i}.png")
    return tmp_path / "images"


SCORERS = ["clip_score", "clip_iqa", "pick_score", "hps_v21", "image_reward", "maniqa", "visual_quality_r1"]
OPTIONS = ["--features={}", "--perceptual={}", *(f"--quality={name}={{}}" for name in SCORERS)]


KNOWN = [
    *(("--features={}", model_type) for model_type in ("vit", "clip", "bert")),
    ("--perceptual={}", "vit"),
    ("--quality=clip_score={}", "clip"),
    ("--quality=visual_quality_r1={}", "qwen2_5_vl"),
]


@pytest.mark.parametrize(("option", "model_type"), [*((option, "own") for option in OPTIONS), *KNOWN])
def test_no_network_that_looks_at_images_runs_its_code(option, model_type, run, network, images):
    assert run("evaluate", images, "--out", "m.json", "--no-cache", option.format(network(model_type))) == 2


CONFIGURATIONS = {"config": "text_encoder/config.json", "tokenizer": "tokenizer/tokenizer_config.json"}
KINDS = ["pipeline", "library", *CONFIGURATIONS]


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline folder that names code of its own in some of the places where libraries look for it."""

    def make(*kinds: str) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(built_in_teacher(), folder)
        for place in [folder, *(path for path in folder.iterdir() if path.is_dir())]:
            add_code(place, tmp_path / "canary")
        index = read_json(folder / "model_index.json")
        if "pipeline" in kinds:
            index["_class_name"] = ["own", "Own"]
        if "library" in kinds:
            index["text_encoder"] = ["own", "Own"]
        for kind, file in CONFIGURATIONS.items():
            if kind in kinds:
                write_json(folder / file, read_json(folder / file) | {"auto_map": AUTO_MAP})
        write_json(folder / "model_index.json", index)
        return folder

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_no_pipeline_runs_its_code(kind, run, pipeline, tmp_path):
    model, few = pipeline(kind), ["--images-per-prompt", 1, "--num-inference-steps", 1]
    (tmp_path / "p.txt").write_text("a red circle\n")
    settings = {"model.teacher": model, "data.prompts": "p.txt", "train.num_updates": 1, "validation.every": 0}
    recipe = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    codes = [
        run("sample", model, "--prompt", "a red circle", *few, "--out", "s"),
        run("audit", model, "--teacher", "scenes", "--prompts", "p.txt", *few, "--images-per-prompt", 2, "--out", "a"),
        run("train", "scenes_dmd", *recipe, "--set", "output.folder=r"),
        run("plan", "scenes_dmd", *recipe),
        run("new", model, "--out", "my.toml"),
    ]
    # Known classes ignore the map and are read as usual; what names other code is refused, where it would be read.
    assert codes[:3] == ([0, 0, 0] if kind in ("config", "tokenizer") else [2, 2, 2])
    assert kind != "pipeline" or set(codes) == {2}


def a_run(folder: Path, base: Path) -> Path:
    """A finished run on the base, whose student is the base's network."""
    (folder / "student").mkdir(parents=True)
    weights = next((built_in_teacher() / "transformer").glob("*.safetensors"))
    shutil.copyfile(weights, folder / "student" / "student.safetensors")
    info = {"base": str(base), "grid": [1.0, 0.5, 0.0], "num_inference_steps": 4, "objective": "dmd", "updates": 1}
    write_json(folder / "student" / "student.json", info)
    add_code(folder, folder.parent / "canary")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_no_student_of_such_a_pipeline_runs_its_code(kind, run, pipeline, tmp_path):
    student = a_run(tmp_path / "run", pipeline(kind))
    assert run("export", student, "--out", "export") == (2 if kind == "pipeline" else 0)
    assert run("export", student, "--lora", "--out", "lora") == 2  # it is none
    write_json(student / "metrics.json", {"diversity": 0.1})
    assert run("report", student, "--out", "report.html") == 0
    one = ["--prompt", "a red circle", "--images-per-prompt", 1]
    assert run("sample", student, *one, "--out", "s") == (0 if kind in ("config", "tokenizer") else 2)


def compared(run, model: Path) -> int:
    few = ["--budget", "1 steps", "--seeds", "0", "--guidance", "", "--images-per-prompt", 2]
    keys = {"model.teacher": model, "data.prompts": "p.txt", "train.batch_size": 2, "model.num_inference_steps": 4}
    changed = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    Path("p.txt").write_text("a red circle\n")
    return run("compare", "scenes_dmd", *few, *changed, "--prompts", "p.txt", "--features", "scenes", "--out", "c")


@pytest.mark.parametrize("kind", ["pipeline", "library"])
def test_no_comparison_runs_its_code(kind, run, pipeline):
    assert compared(run, pipeline(kind)) == 2


@pytest.mark.slow
def test_no_process_of_a_comparison_runs_its_code(run, pipeline):
    assert compared(run, pipeline(*CONFIGURATIONS)) == 0


@pytest.mark.parametrize("command", ["sample", "plan"])
def test_a_folder_of_the_name_of_a_built_in_model_is_not_taken_for_it(command, run, pipeline, tmp_path):
    """The demo, which reads no other model, and all else that names one find the package's own."""
    pipeline("pipeline").rename(tmp_path / "scenes")
    one = ["--prompt", "a red circle", "--images-per-prompt", 1, "--num-inference-steps", 1, "--out", "s"]
    assert run(*(["sample", "scenes", *one] if command == "sample" else ["plan", "scenes_dmd"])) == 0
