"""The recipe of a run: one TOML file, read strictly, every key with its default and its meaning."""

import difflib
import json
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from dpdmd.models.quantised import PACKAGES as QUANTISED
from dpdmd.objectives.presets import ObjectiveConfig

NO_CACHE = "none"  # of data.cache


class Section(BaseModel):
    """One table of a recipe: unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The teacher, and how it is sampled."""

    teacher: str = Field(min_length=1, description='Pipeline folder, hub id, or "scenes" for the built-in teacher.')
    dtype: Literal["fp32", "bf16", "int8", "nf4"] = Field(
        default="fp32",
        description="Of the teacher's frozen weights; what is trained is fp32. int8 (torchao) and nf4 (4 bits, "
        "bitsandbytes) are for adapters on them.",
    )
    height: int | None = Field(default=None, ge=1, description="Image height in pixels. Default: the teacher's own.")
    width: int | None = Field(default=None, ge=1, description="Image width in pixels. Default: the teacher's own.")
    guidance_scale: float | None = Field(
        default=None, ge=1, description="Guidance of the teacher, 1 = off. Default: the model family's."
    )
    num_inference_steps: int | None = Field(
        default=None, ge=2, description="Steps of the teacher's own grid. Default: the model family's."
    )
    embedded_guidance: float | None = Field(
        default=None, ge=0, description="Guidance fed to a guidance-distilled teacher (FLUX.1-dev). Default: 3.5."
    )

    @model_validator(mode="after")
    def _both_sides(self):
        if (self.height is None) != (self.width is None):
            raise ValueError(f"set height and width, or neither, got height {self.height} and width {self.width}")
        return self


def _two_to_eight(num_steps: int) -> int:
    if num_steps == 1:
        raise ValueError("must be 2 to 8: one step, detached behind step 1, would leave DMD nothing to train")
    if not 2 <= num_steps <= 8:
        raise ValueError("must be 2 to 8")
    return num_steps


class StudentConfig(Section):
    """The few-step student."""

    num_steps: Annotated[int, AfterValidator(_two_to_eight)] = Field(
        default=4, description="N, network calls per image: 2 to 8."
    )
    grid: Literal["uniform", "stock"] = Field(
        default="uniform",
        description="uniform: every call counts. stock: the stock scheduler's, whose last call does next to nothing.",
    )
    shift: float | None = Field(
        default=None,
        gt=0,
        description="Shift of the uniform grid of a flow. Default: the model's. Less lands step 1 at less noise, where "
        "more of the picture is settled.",
    )
    kind: Literal["ode", "renoise"] = Field(
        default="ode", description="ode: deterministic steps. renoise: x0 noised anew behind every step (LCM, DMD2)."
    )
    embedded_guidance: float | None = Field(
        default=None, ge=0, description="Guidance fed to a guidance-distilled student. Default: the teacher's."
    )
    start: str | None = Field(
        default=None,
        min_length=1,
        description="Run, export or pipeline to start from. Default: the teacher.",
    )


class DataConfig(Section):
    """What the student is asked to draw."""

    prompts: str = Field(
        min_length=1,
        description='UTF-8 file, one prompt per line ("#" lines are comments) or .jsonl; "datasets:ID[:SPLIT]" for a '
        'Hugging Face dataset; "scenes" for the built-in ones.',
    )
    cache: str | None = Field(
        default=None,
        min_length=1,
        description="Folder of the prompts' embeddings and the teacher's samples, which runs share. Default: the "
        'user\'s cache. "none": encode while training.',
    )
    column: str = Field(default="prompt", min_length=1, description="Where a .jsonl file or a dataset has the prompt.")


class TrainConfig(Section):
    """The optimisation; defaults are those of arXiv 2602.03139, but for `reuse_samples`."""

    num_updates: int = Field(default=6000, ge=1, description="Student updates.")
    max_seconds: float | None = Field(
        default=None, gt=0, description="Training seconds after which the run ends all the same. Default: no limit."
    )
    batch_size: int = Field(default=4, ge=1, description="Prompts per micro-batch and process.")
    samples_per_prompt: int = Field(
        default=1, ge=1, description="How many samples of a micro-batch one prompt has; batch_size is a multiple."
    )
    accumulation: int = Field(default=1, ge=1, description="Micro-batches per update.")
    fake_updates: int = Field(default=5, ge=1, description="M, fake-score updates before each student update.")
    fake_head_start: int = Field(
        default=0, ge=0, description="Further fake-score updates before the first student update."
    )
    reuse_samples: bool = Field(
        default=True,
        description="The M fake-score updates share one rollout of the student, each with tau and noise of its own.",
    )
    random_step: bool = Field(
        default=False,
        description="Train x0 of one random step behind the anchored ones instead of the end of the whole rollout: "
        "fewer calls, one backward pass through one step. Re-noising students always do.",
    )
    time_jitter: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="While training, step 1 lands up to this share of the way to its neighbours beside its time.",
    )
    learning_rate: float = Field(default=1e-5, gt=0, description="Student's learning rate (AdamW).")
    fake_learning_rate: float | None = Field(
        default=None, gt=0, description="Fake score's learning rate. Default: the student's."
    )
    fake_embedded_guidance: float | None = Field(
        default=None, ge=0, description="Guidance fed to a guidance-distilled fake score. Default: the teacher's."
    )
    warmup: int = Field(default=0, ge=0, description="Student updates over which both learning rates rise linearly.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay, both networks.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), description="AdamW's betas, both networks."
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="Global gradient norm each update is clipped to.")
    ema_decay: float = Field(default=0.0, ge=0, lt=1, description="Moving average of the student's weights; 0 = off.")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Of network calls; weights, losses and optimiser stay in fp32."
    )
    shard: bool = Field(
        default=False,
        description="Spread every network over the processes (FSDP2) instead of copying it (DDP).",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    compile: bool = Field(
        default=False, description="torch.compile the networks' blocks: minutes at the start, faster updates behind."
    )
    seed: int = Field(default=0, ge=0, description="Everything random follows from it.")


class LoraConfig(Section):
    """Who trains a LoRA on the teacher's own weights instead of all weights of a copy: saves memory, little else."""

    roles: tuple[Literal["student", "fake_score"], ...] = Field(
        default=(), description='["student", "fake_score"]: one backbone for all three. Default: nobody, three copies.'
    )
    rank: int = Field(default=64, ge=1, description="Rank of the update of every target.")
    alpha: float | None = Field(default=None, gt=0, description="The update is scaled by alpha / rank. Default: rank.")
    targets: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Names of the linear layers. Default: the family's attention layers."
    )
    use_rslora: bool = Field(default=False, description="Scale by alpha / sqrt(rank) instead (arXiv 2312.03732).")
    use_dora: bool = Field(default=False, description="Train magnitudes apart from directions (arXiv 2402.09353).")


class ValidationConfig(Section):
    """Pictures while training, teacher above, student below, same prompts and seeds; and their figures."""

    every: int = Field(default=0, ge=0, description="Student updates between validations; 0 = off.")
    prompts: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Default: four prompts spread over the training prompts."
    )
    num_seeds: int = Field(default=4, ge=1, description="Images per prompt, seeds 0, 1, ...")
    features: str = Field(
        default="auto",
        min_length=1,
        description='Network of the figures: folder or hub id, "scenes", or "auto", as `dpdmd evaluate` has it.',
    )


class CheckpointConfig(Section):
    """Checkpoints; one is always written at the end, on Ctrl-C and on SIGTERM."""

    every: int = Field(default=500, ge=0, description="Student updates between checkpoints; 0 = only at the end.")
    keep: int = Field(default=2, ge=1, description="How many of the newest are kept.")
    students: bool = Field(
        default=False,
        description="Keep with every checkpoint the student of that moment, students/step-000050: `dpdmd sample` "
        "takes that folder.",
    )
    best: int = Field(
        default=1,
        ge=0,
        description="How many students are kept for their figures in validation, in students/best; 0: none.",
    )
    diversity_floor: float = Field(
        default=0.8,
        ge=0,
        description="The best is of highest quality among those that keep this share of the teacher's diversity.",
    )


class OutputConfig(Section):
    """Where the run goes."""

    folder: str = Field(min_length=1, description="Run folder.")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=(),
        description='["tensorboard", "wandb"], or one of them, are told all that metrics.jsonl is, and the pictures.',
    )


class Recipe(Section):
    """One training run."""

    model: ModelConfig
    student: StudentConfig = StudentConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    data: DataConfig
    train: TrainConfig = TrainConfig()
    lora: LoraConfig = LoraConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    output: OutputConfig

    @model_validator(mode="after")
    def _groups(self):
        if self.train.batch_size % self.train.samples_per_prompt:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} must be a multiple of train.samples_per_prompt, got "
                f"{self.train.samples_per_prompt}"
            )
        return self

    @model_validator(mode="after")
    def _frozen_weights(self):
        dtype = self.model.dtype
        if dtype != "fp32" and self.train.precision != "bf16":
            raise ValueError(
                f'model.dtype "{dtype}" needs train.precision "bf16": fp32 calls would not fit such weights'
            )
        if dtype in QUANTISED and len(set(self.lora.roles)) < 2:
            raise ValueError(
                f'model.dtype "{dtype}" needs lora.roles ["student", "fake_score"]: quantised weights cannot be '
                f"trained, only adapters on them; got {list(self.lora.roles)}"
            )
        if dtype in QUANTISED and self.train.shard:
            raise ValueError(f'model.dtype "{dtype}" and train.shard exclude each other: such weights are not spread')
        if self.student.start is not None and "student" in self.lora.roles:
            raise ValueError(
                f"student.start is for a student that trains all weights, got {self.student.start!r} and a LoRA student"
            )
        return self

    @model_validator(mode="after")
    def _perceptual(self):
        if self.objective.name == "dmd_perceptual" and self.student.kind == "renoise":
            raise ValueError(
                'objective.name "dmd_perceptual" needs student.kind "ode": a re-noising student draws more than one '
                "sample from one noise"
            )
        if self.objective.num_pairs is not None and self.data.cache == NO_CACHE:
            raise ValueError(
                f"objective.perceptual.num_pairs = {self.objective.num_pairs} keeps the teacher's samples on disk: it "
                'needs data.cache, got "none"'
            )
        return self


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe file, or the shipped recipe of that name, with `section.key=value` overrides on top.

    A value is TOML ("1e-4", "[0.3, 0.9]", "true"); what is no TOML is taken as text; an empty one restores the
    default. Raises ValueError listing every problem at once: key, what came, what is allowed, the nearest name.
    """
    path = find_recipe(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise ValueError(f"cannot read the recipe {path}: {error.strerror}") from None
    problems = [problem for text in overrides if (problem := _override(data, text))]
    try:
        # Strict JSON takes lists for tuples and whole numbers for floats, but no "4" or true for a number.
        recipe = Recipe.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        problems += [_problem(details) for details in error.errors()]
    if problems:
        raise ValueError("\n  ".join([f"{path} cannot be used, {_count(len(problems))}:", *problems]))
    return recipe


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = files("dpdmd") / "recipes"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir()) if folder.is_dir() else []


def find_recipe(name: str | Path) -> Path:
    """The file `name`, or the shipped recipe called so. Raises ValueError with the nearest names."""
    path, shipped = Path(name), shipped_recipes()
    if path.is_file():
        return path
    if str(name) in shipped:
        return Path(str(files("dpdmd") / "recipes" / f"{name}.toml"))
    nearest = difflib.get_close_matches(str(name), shipped, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ValueError(f"no recipe file {path} and no shipped recipe of that name ({', '.join(shipped) or 'none'}){hint}")


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as TOML that loads back equal; keys without a value (None) are left out."""
    return "\n\n".join(_tables(recipe.model_dump())) + "\n"


def describe_recipe() -> str:
    """Every key with its default and its meaning, as a TOML template."""
    lines, section = [], None
    for key, field in recipe_keys():
        table, _, name = key.rpartition(".")
        if table != section:
            lines += ["", f"[{table}]"] if lines else [f"[{table}]"]
            section = table
        if field.is_required():
            setting = f"{name} = ..."
        else:
            setting = f"# {name} =" if field.default is None else f"{name} = {_toml(field.default)}"
        lines.append(f"{setting:<32} # {'Required. ' if field.is_required() else ''}{field.description}")
    return "\n".join(lines)


def recipe_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, its field) of every key of a recipe, in order."""
    tables = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            tables.append((field.annotation, f"{prefix}{name}."))
        else:
            yield f"{prefix}{name}", field
    for table in tables:
        yield from recipe_keys(*table)


def flatten(recipe: Recipe) -> dict[str, Any]:
    """{dotted key: value} of a recipe."""
    values = {}
    for key, _ in recipe_keys():
        value: Any = recipe
        for part in key.split("."):
            value = getattr(value, part)
        values[key] = value
    return values


def _override(data: dict, text: str) -> str | None:
    """Put one override into `data`; what is wrong with it, or None."""
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or len(parts) < 2 or not all(parts):
        return f"{text!r}: an override reads section.key=value, such as train.learning_rate=2e-4"
    table = data
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            return f"{key}: {part} is a value, not a section"
    if value.strip():
        table[parts[-1]] = _parse(value.strip())
    else:
        table.pop(parts[-1], None)
    return None


def _parse(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def _problem(details: dict) -> str:
    """One validation error in words."""
    parts = [str(part) for part in details["loc"]]
    key, kind = ".".join(parts), details["type"]
    fields = dict(recipe_keys())
    if kind == "extra_forbidden":
        return _unknown_key(parts, details["input"], list(fields))
    field = fields.get(key) or fields.get(".".join(parts[:-1]))
    meaning = f" ({field.description.rstrip('.')})" if field is not None and field.description else ""
    if kind == "missing":
        inside = [name for name in fields if name.startswith(f"{key}.") and fields[name].is_required()]
        return f"{', '.join(inside) or key} is required{meaning}"
    rule = details["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if kind == "value_error" and isinstance(details["input"], dict):
        return f"{key}: {rule}"
    nearest = ""
    if kind == "literal_error" and field is not None:
        names = difflib.get_close_matches(str(details["input"]), map(str, get_args(field.annotation)), n=1)
        nearest = f"; did you mean {names[0]!r}?" if names else ""
    return f"{key} {rule}, got {details['input']!r}{nearest}{meaning}"


def _unknown_key(parts: list[str], value: Any, known: list[str]) -> str:
    *table, name = parts
    prefix = "".join(f"{part}." for part in table)
    allowed = list(dict.fromkeys(key.removeprefix(prefix).split(".")[0] for key in known if key.startswith(prefix)))
    elsewhere = [key for key in known if key.rpartition(".")[2] == name]
    close = [prefix + match for match in difflib.get_close_matches(name, allowed, n=1)]
    tails = {key.rpartition(".")[2]: key for key in known}
    far = [tails[match] for match in difflib.get_close_matches(name, tails, n=1)]
    nearest = next(iter(elsewhere + close + far), None)
    where = f"[{'.'.join(table)}] has" if table else "sections are"
    hint = f"; did you mean {nearest}?" if nearest else ";"
    came = "" if isinstance(value, dict) else f", got {value!r}"
    return f"{'.'.join(parts)} is no key of a recipe{came}{hint} {where}: {', '.join(allowed)}"


def _count(number: int) -> str:
    return "one problem" if number == 1 else f"{number} problems"


def _tables(values: dict[str, Any], name: str = "") -> Iterator[str]:
    plain = {key: value for key, value in values.items() if not isinstance(value, dict) and value is not None}
    lines = [f"{key} = {_toml(value)}" for key, value in plain.items()]
    if lines:
        yield "\n".join([f"[{name}]", *lines] if name else lines)
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _tables(value, f"{name}.{key}" if name else key)


def _toml(value: Any) -> str:
    """A plain value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # JSON's escapes are TOML's, except that TOML wants DEL escaped as well.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"[{', '.join(map(_toml, value))}]"
