"""What a resumed run must share with the run that began: its settings, and the content of what it reads.

Names do not decide. What was moved or is written otherwise is the same as long as its content is.
"""

from typing import Any

# Keys that name what a run reads; `differences` compares their content.
BY_CONTENT = (
    "model.teacher",
    "model.loras",
    "student.start",
    "objective.perceptual.backbone",
    "objective.adversarial.real",
    "data.prompts",
)
# Of the identity in a checkpoint: what its keys are in words.
WORDS = {
    "settings_hash": "settings of the recipe",
    "prompts_hash": "prompts (data.prompts)",
    "images_hash": "images (objective.adversarial.real)",
    "backbone_hash": "network to compare pictures with (objective.perceptual.backbone)",
}
SAMPLES_HINT = "on fewer processes raise train.accumulation, on more lower it, so that their product stays"


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between the identity in a checkpoint and that of the run that would go on from it, in words.

    A key that `before` lacks is not compared: an earlier version wrote it (`not_compared`).
    """
    known = {key: value for key, value in now.items() if key in before}
    found = [f"it was trained with other {words}" for key, words in WORDS.items() if known.get(key) != before.get(key)]
    if "teacher_parts" in known and known["teacher_parts"] != before["teacher_parts"]:
        found.append(_teacher(before["teacher_parts"], known["teacher_parts"]))
    if "start" in known and _is_another_start(before["start"], known["start"]):
        found.append("it began from another student (student.start)")
    if known.get("samples_per_update") != before.get("samples_per_update"):
        samples = f"{before.get('samples_per_update')} samples per update, now {now['samples_per_update']}"
        found.append(f"it was trained with {samples}; {SAMPLES_HINT}")
    return found


def not_compared(before: dict[str, Any]) -> list[str]:
    """What a checkpoint of an earlier version does not say of its run, in words: it cannot be compared."""
    return [words for key, words in (*WORDS.items(), ("teacher_parts", "teacher (model.teacher)")) if key not in before]


def _teacher(before: Any, now: dict[str, str]) -> str:
    before = before if isinstance(before, dict) else {}
    changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    keys = "model.teacher, model.loras" if any(name.startswith("LoRA ") for name in changed) else "model.teacher"
    return f"the teacher's {', '.join(changed)} had another content ({keys})"


def _is_another_start(before: Any, now: dict[str, str] | None) -> bool:
    """Neither the same name nor the same content: a run of the same name may have gone on, which changes nothing."""
    if not isinstance(before, dict) or now is None:
        return before != now
    return before.get("name") != now["name"] and before.get("sha256") != now["sha256"]
