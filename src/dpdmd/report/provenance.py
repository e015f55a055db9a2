"""What is needed to repeat a report: a table of facts about each arm, and the files with all details."""

import json
from datetime import datetime
from typing import Any

from dpdmd.report.runs import ArmReport, recipe_of

# Not by strftime, whose names depend on the locale of who makes the page.
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip


def provenance_facts(arms: dict[str, ArmReport]) -> dict[str, list[str]]:
    """{fact: a text for each arm, "" where it is unknown}, for the facts that are known of any arm."""
    of_arms = [_facts(arm) for arm in arms.values()]
    texts = {name: [facts[name] for facts in of_arms] for name in of_arms[0]}
    return {name: of_name for name, of_name in texts.items() if any(of_name)}


def provenance_files(arms: dict[str, ArmReport], given: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of everything that is shown in full: `given` first, then what each arm's folders hold."""
    rows = [(name, value if isinstance(value, str) else _as_json(value)) for name, value in given.items()]
    for arm in arms.values():
        if arm.images and arm.images.info:
            rows.append((f"{arm.label}: samples", _as_json(arm.images.info)))
        if arm.metrics.get("provenance"):
            rows.append((f"{arm.label}: evaluation", _as_json(arm.metrics["provenance"])))
        rows += [(f"{arm.label}: {name}", text) for name, text in arm.settings.items()]
    return rows


def _facts(arm: ArmReport) -> dict[str, str]:
    recipe, trained = recipe_of(arm), _object(arm.settings.get("provenance.json", ""))
    session = arm.sessions[-1] if arm.sessions else {}
    info = arm.images.info if arm.images else {}
    scored = arm.metrics.get("provenance")
    facts = {
        "objective": _at(recipe, "objective", "name"),
        "teacher": _at(recipe, "model", "teacher") or trained.get("teacher"),
        "student updates": _at(recipe, "train", "num_updates"),
        "training seed": trained.get("seed", _at(recipe, "train", "seed")),
        "commit": str(session.get("commit") or "")[:12],
        "trained on": readable_date(session.get("started")),
        "versions": _versions(session.get("versions")),
        "images by": info.get("model"),
        "steps": info.get("num_inference_steps"),
        "guidance": info.get("guidance_scale"),
        "negative prompt": info.get("negative_prompt"),
        "LoRAs": _loras(info.get("loras")),
        "scheduler": _at(info, "scheduler", "class"),
        "timesteps or sigmas": _listed(info.get("timesteps") or info.get("sigmas")),
        "left at its default": _listed(info.get("defaults")),
        "merged into": info.get("base"),
        "LoRA layers that fit": _fit(info.get("lora_layers")),
        "image seeds": _image_seeds(arm),
        "scored with": _at(scored, "features"),
    }
    return {name: "" if value is None else str(value) for name, value in facts.items()}


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _versions(versions: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else ""


def _listed(values: Any) -> str | None:
    return ", ".join(map(str, values)) if isinstance(values, list) else None


def _loras(values: Any) -> str | None:
    entries = [entry for entry in values if isinstance(entry, dict)] if isinstance(values, list) else []
    return ", ".join(f"{entry.get('path')} ({entry.get('weight')})" for entry in entries) or None


def _fit(layers: Any) -> str | None:
    return f"{layers.get('applied')} of {layers.get('in_file')}" if isinstance(layers, dict) else None


def _image_seeds(arm: ArmReport) -> str:
    seeds = sorted({entry.seed for entry in arm.images.images}) if arm.images else []
    if len(seeds) < 3:
        return ", ".join(map(str, seeds))
    is_range = seeds[-1] - seeds[0] == len(seeds) - 1
    return f"{seeds[0]} to {seeds[-1]}" if is_range else f"{len(seeds)} of {seeds[0]} to {seeds[-1]}"


def readable_date(text: Any) -> str | None:
    """ "29 November 2026, 19:37 UTC" for "2026-11-29T19:37:42+0000"; another text as it is."""
    try:
        when = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text) if text else None
    offset = when.utcoffset()
    zone = "" if offset is None else " UTC" if not offset else f" UTC{when:%z}"
    return f"{when.day} {MONTHS[when.month - 1]} {when.year}, {when:%H:%M}{zone}"


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)
