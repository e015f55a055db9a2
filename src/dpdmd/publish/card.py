"""The model card of an export: origin of the student, how to sample it, its scores, its licence."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpdmd.evaluate.intervals import LEVEL
from dpdmd.evaluate.metrics import SCORES
from dpdmd.models.student_file import StudentFile
from dpdmd.publish.comfyui import NONE, WORKFLOW_FILE
from dpdmd.publish.pictures import PICTURE_FILE, Picture
from dpdmd.report.runs import is_number
from dpdmd.store.files import read_json
from dpdmd.store.tensors import read_metadata

CARD = """\
---
{head}
---
# {num_steps}-step student of {base}

{picture}- Base model: {base}
- Method: {method}, {updates} student updates, trained with dpdmd
- Grid: t = {grid} (1 = noise, 0 = data). Sample it on this grid only, and without guidance
{facts}

## Use

{snippet}

{comfyui}## Scores

{scores}

## Licence

{licence}
"""

METHODS = {
    "dmd": "distribution matching distillation (DMD)",
    "dmd_perceptual": "distribution matching distillation with a perceptual regression to the teacher's samples "
    "([arXiv 2311.18828](https://arxiv.org/abs/2311.18828))",
    "dp_dmd": "diversity-preserved distribution matching distillation (DP-DMD, "
    "[arXiv 2602.03139](https://arxiv.org/abs/2602.03139))",
    "dmd_adversarial": "distribution matching distillation with an adversarial loss (DMD2, "
    "[arXiv 2405.14867](https://arxiv.org/abs/2405.14867))",
}

UNKNOWN = "unknown"


@dataclass(frozen=True)
class CardParts:
    """What a model card says besides student.json.

    name: of the model. base: public name of its base; hub_base: hub id of the base, or None for a folder, which the hub
    would refuse as `base_model`. snippet: Python code. licence: as `base_licence` returns it. metrics: as
    `read_metrics` returns them; None for a student without scores. facts: further lines of the list at the top.
    comfyui: settings for ComfyUI, None where it cannot draw the model, for the reason why_no_comfyui. picture: what
    `write_picture` returned. recipe: text of the run's recipe.toml.
    """

    name: str
    base: str
    hub_base: str | None
    snippet: str
    licence: dict[str, Any]
    metrics: dict[str, Any] | None = None
    facts: Sequence[str] = ()
    comfyui: Sequence[str] | None = None
    why_no_comfyui: str = NONE
    picture: Picture | None = None
    recipe: str | None = None
    lora_licences: Mapping[str, dict[str, Any]] = field(default_factory=dict)


def model_card(info: StudentFile, parts: CardParts) -> str:
    """The text of README.md: a YAML head for the hub, then Markdown. It names no path of this machine."""
    from huggingface_hub import ModelCardData

    known: dict[str, Any] = {"license": UNKNOWN} | parts.licence
    head = ModelCardData(
        base_model=parts.hub_base,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["distillation", "few-step", "dpdmd"],
        model_name=parts.name,
        eval_results=None if parts.metrics is None else _results(parts.metrics),
        **known,
    )
    card = CARD.format(
        head=head.to_yaml(),
        num_steps=info.num_inference_steps,
        base=code(parts.base),
        method=METHODS.get(info.objective, code(info.objective)),
        updates=info.updates,
        grid=", ".join(f"{t:.4g}" for t in info.grid),
        facts="\n".join(f"- {fact}" for fact in parts.facts),
        picture=_picture(parts.picture),
        snippet=_fenced(parts.snippet, "python"),
        comfyui=_comfyui(parts.comfyui, parts.why_no_comfyui),
        scores=unscored_section(parts.base) if parts.metrics is None else metrics_section(parts.metrics),
        licence=_licence_section(parts.licence, parts.lora_licences),
    )
    if parts.recipe is None:
        return card
    return f"{card}\n## Recipe\n\n{_fenced(without_paths(parts.recipe), 'toml')}\n"


def without_paths(recipe: str) -> str:
    """A recipe's text with every absolute path replaced by its last name."""
    return re.sub(r"""(["'])[/~][^"'\n]*?([^/"'\n]+)/?\1""", r"\1\2\1", recipe)


def _results(metrics: dict[str, Any]) -> list[Any] | None:
    """The scores as the hub lists them (`model-index`); None if nothing was measured."""
    from huggingface_hub import EvalResult

    dataset = f"{metrics['num_prompts']} prompts, {metrics['images_per_prompt']} images each"
    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type="prompts",
            dataset_name=dataset,
            metric_type=metric.key,
            metric_name=metric.heading,
            metric_value=round(value, 4),
        )
        for metric in SCORES
        if (value := metrics.get(metric.key)) is not None
    ]
    return results or None


def _picture(picture: Picture | None) -> str:
    if picture is None:
        return ""
    prompts = f" Prompts: {'; '.join(map(code, picture.prompts))}." if picture.prompts else ""
    return f"![Teacher and student]({PICTURE_FILE})\n\n{picture.caption}{prompts}\n\n"


def _comfyui(settings: Sequence[str] | None, why_none: str) -> str:
    if settings is None:
        return f"## ComfyUI\n\n{why_none}\n\n"
    lines = "\n".join(f"- {setting}" for setting in settings)
    return (
        f"## ComfyUI\n\n`{WORKFLOW_FILE}` is the whole workflow; choose your own files in its loaders. What matters in "
        f"it:\n\n{lines}\n\n"
    )


def read_metrics(path: str | Path) -> dict[str, Any]:
    """Read what `dpdmd evaluate` wrote. Raises ValueError for any other file."""
    metrics = read_json(path)
    if isinstance(metrics, dict) and isinstance(metrics.get("arms"), dict):
        raise ValueError(f"{path} has the metrics of several arms; name the metrics.json in the folder of one arm")
    kinds = {"num_prompts": int, "images_per_prompt": int, "intervals": dict, "provenance": dict}
    for key, kind in kinds.items():
        if not isinstance(metrics, dict) or not isinstance(metrics.get(key), kind):
            raise ValueError(f'{path} was not written by `dpdmd evaluate`: it has no valid "{key}"')
    for key in (metric.key for metric in SCORES):
        value, interval = metrics.get(key), metrics["intervals"].get(key)
        is_pair = interval is None or (isinstance(interval, list) and len(interval) == 2)
        if not (is_pair and all(map(is_number, [0 if value is None else value, *(interval or [])]))):
            raise ValueError(
                f'{path} was not written by `dpdmd evaluate`: its "{key}" is not a number with an interval'
            )
    return metrics


def metrics_section(metrics: dict[str, Any]) -> str:
    """The table of metrics with their intervals, and what they were measured on."""
    features = metrics["provenance"].get("features")
    lines = [
        f"{metrics['num_prompts']} prompts, {metrics['images_per_prompt']} images each, "
        + (f"of {code(str(metrics['image_size']))} pixels (height x width), " if "image_size" in metrics else "")
        + (f"features of {code(str(features))}" if features else "no features, so diversity was not measured")
        + f". Intervals are {100 * LEVEL:g} % bootstrap intervals over prompts, of this one training run. They do not "
        "show how another training seed would differ.",
        "",
        "| metric | value | interval | meaning |",
        "|---|---|---|---|",
    ]
    for metric in SCORES:
        value = metrics.get(metric.key)
        if value is not None:
            interval = " to ".join(f"{bound:.3f}" for bound in metrics["intervals"].get(metric.key) or [])
            lines.append(f"| {metric.key} | {value:.3f} | {interval} | {metric.explanation} |")
    if metrics.get("frechet_reliable") is False:
        lines += ["", "Do not rely on the Frechet distance: there are fewer images than the features have dimensions."]
    return "\n".join(lines)


def unscored_section(base: str) -> str:
    """A note that nothing was measured, and the commands that do it, for a run folder RUN."""
    same = "--prompts prompts.txt --images-per-prompt 16 --out"
    commands = [
        f"dpdmd sample {shlex.quote(base)} {same} RUN/teacher_samples",
        f"dpdmd sample RUN {same} RUN/samples",
        "dpdmd evaluate RUN/samples --reference RUN/teacher_samples --out RUN/metrics.json",
    ]
    return "This student has not been evaluated yet. These commands evaluate it; then export it again.\n\n" + _fenced(
        "\n".join(commands), "bash"
    )


def base_licence(source: str) -> dict[str, Any]:
    """The licence fields in the card of a base model (folder or hub id); {} when it cannot be read or names none.

    A `license_link` to a file in the base's hub repository becomes a full address; for a folder it is left out.
    """
    from huggingface_hub import hf_hub_download, metadata_load
    from yaml import YAMLError

    is_folder = Path(source).is_dir()
    try:
        head = metadata_load(Path(source, "README.md") if is_folder else hf_hub_download(source, "README.md")) or {}
    except (OSError, ValueError, YAMLError):
        return {}
    names = ("license", "license_name", "license_link")
    fields = {key: _one_line(head[key]) for key in names if isinstance(head, dict) and head.get(key)}
    if fields.get("license", UNKNOWN) == UNKNOWN:
        return {}
    link = fields.pop("license_link", "")
    if "://" not in link and link and not is_folder:
        link = f"https://huggingface.co/{source}/blob/main/{link}"
    if re.fullmatch(r"https?://[^\s<>\"'`]+", link):
        fields["license_link"] = link
    return fields


def require_licence(name: str) -> None:
    """Raises ValueError for what is no identifier of a licence: it stands in the head of the card."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,99}", name):
        raise ValueError(f"--license must be an identifier of the hub, such as apache-2.0 or other, got {name[:100]!r}")


def _one_line(value: Any) -> str:
    """Text of somebody's card without line ends and control characters; several licences separated by commas."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]


def lora_licence(path: str) -> dict[str, Any]:
    """The licence fields of a LoRA: a folder's or hub id's in its card, a file's in its header; {} for none."""
    if not Path(path).is_file():
        return base_licence(path)
    name = _one_line(read_metadata(path).get("modelspec.license", ""))
    return {"license": "other", "license_name": name} if name else {}


def _licence_section(licence: dict[str, Any], loras: Mapping[str, dict[str, Any]]) -> str:
    lines = [
        f"- LoRA {code(name)}: {_licence(own) if own else 'unknown, look where it comes from'}"
        for name, own in loras.items()
    ]
    also = "\n\nIts teacher has LoRAs, whose licences count as well:\n\n" if lines else ""
    return _licence_of_base(licence) + also + "\n".join(lines)


def _licence_of_base(licence: dict[str, Any]) -> str:
    if not licence:
        return (
            "Unknown: no licence could be read from the base model's card. A student inherits the licence of its base "
            "model, so look there before you use this one."
        )
    return f"{_licence(licence)}. A student inherits the licence of its base model."


def _licence(licence: dict[str, Any]) -> str:
    name, link = licence.get("license_name") or licence["license"], licence.get("license_link")
    return f"{code(str(name))}{f' (<{link}>)' if link else ''}"


def code(text: str) -> str:
    """A code span, whatever the text contains."""
    text = " ".join(text.split())
    ticks = "`" * (_longest_ticks(text) + 1)
    space = " " if "`" in text else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def _fenced(text: str, language: str) -> str:
    """A code block, whatever the text contains."""
    ticks = "`" * max(3, _longest_ticks(text) + 1)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
