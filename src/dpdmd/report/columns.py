"""What the figures of metrics.json are called, what they mean in one line, and how they are written."""

from dataclasses import dataclass, replace

from dpdmd.report.runs import ArmReport, is_number

MORE, LESS = "more is better", "less is better"


@dataclass(frozen=True)
class Column:
    """One figure: its key, heading, meaning in one line, how its numbers are written (see `tables.written`), whether
    more or less of it is better ("" where neither is), and the group of figures that it belongs to."""

    key: str
    heading: str
    explanation: str
    style: str = "figure"
    better: str = ""
    group: str = ""


_KEPT, _NEAR, _QUALITY, _DRAWING = "Diversity", "Likeness to the teacher", "Quality", "Drawing the images"
NUMBERS = (
    Column(
        "diversity_share",
        "diversity kept",
        "Diversity as a share of the teacher's on the same prompts and seeds; 100 % is as diverse as the teacher.",
        "percent",
        group=_KEPT,
    ),
    Column(
        "diversity_share_worst_tenth",
        "kept in the worst tenth",
        "The same of the tenth of prompts that lost most: a good mean may hide prompts that collapse.",
        "percent",
        group=_KEPT,
    ),
    Column(
        "prompts_near_reference",
        "prompts near",
        "Share of prompts whose diversity is within 20 % of the teacher's. 100 % kept in the mean may hide that some "
        "prompts collapse while others wander off.",
        "percent",
        MORE,
        _KEPT,
    ),
    Column(
        "diversity",
        "diversity",
        "How different the images of one prompt are: 1 minus the mean cosine similarity of their features, "
        "over all pairs; 0 means all alike.",
        "decimal",
        group=_KEPT,
    ),
    Column(
        "spatial_diversity_share",
        "spatial diversity kept",
        "The share of the teacher's diversity, place by place: it sees where things are and how they stand.",
        "percent",
        group=_KEPT,
    ),
    Column(
        "spatial_diversity",
        "spatial diversity",
        "As diversity, from features at the places of a grid instead of one for the whole image.",
        "decimal",
        group=_KEPT,
    ),
    Column(
        "vendi_share",
        "Vendi kept",
        "The Vendi score as a share of the teacher's.",
        "percent",
        group=_KEPT,
    ),
    Column(
        "vendi",
        "Vendi score",
        "How many different images there seem to be among those of one prompt, from 1 to their number.",
        "decimal",
        group=_KEPT,
    ),
    Column(
        "perceptual_diversity_share",
        "perceptual diversity kept",
        "Perceptual diversity as a share of the teacher's.",
        "percent",
        group=_KEPT,
    ),
    Column(
        "perceptual_diversity",
        "perceptual diversity",
        "How different the images of one prompt look: the mean distance of pairs by LPIPS or its like.",
        "decimal",
        group=_KEPT,
    ),
    Column(
        "effective_modes",
        "effective modes",
        "How many different values a factor that the prompt leaves open takes, weighted by how evenly (exponential of "
        "the entropy, mean over factors); read from the images themselves, so overdriven colours do not raise it.",
        "decimal",
        group=_KEPT,
    ),
    Column(
        "effective_modes_mean",
        "modes kept",
        "Effective modes as a share of what exact sampling of the world gives; 100 % when nothing is lost.",
        "percent",
        group=_KEPT,
    ),
    Column("recall", "recall", "Share of the teacher's images that are near one of these.", "percent", MORE, _NEAR),
    Column(
        "coverage",
        "coverage",
        "Share of the teacher's images in whose neighbourhood there is one of these.",
        "percent",
        MORE,
        _NEAR,
    ),
    Column("precision", "precision", "Share of images that are near one of the teacher's.", "percent", MORE, _NEAR),
    Column(
        "density",
        "density",
        "In how many neighbourhoods of the teacher's images an image lies, by what is expected; may be above 1.",
        "decimal",
        MORE,
        _NEAR,
    ),
    Column(
        "frechet",
        "Frechet distance",
        "Distance of all images to the teacher's in feature space; 0 is the same.",
        "figure",
        LESS,
        _NEAR,
    ),
    Column(
        "kid",
        "kernel distance",
        "The same without a bias from few images (KID); slightly below 0 where there is no difference.",
        "figure",
        LESS,
        _NEAR,
    ),
    Column(
        "total_variation_reference",
        "off the teacher",
        "Distance (total variation, 0 to 1) of what is left open from what the teacher leaves open: a student can be "
        "diverse and still draw other things.",
        "decimal",
        LESS,
        _NEAR,
    ),
    Column(
        "total_variation_true",
        "off the truth",
        "The same distance to the world's own distribution; few images alone give some.",
        "decimal",
        LESS,
        _NEAR,
    ),
    Column(
        "quality",
        "quality",
        "Valid times prompt followed, in the mean over prompts: about the share of images that are clean and as "
        "prompted. For other images their precision, the share that is near the teacher's.",
        "percent",
        MORE,
        _QUALITY,
    ),
    Column(
        "named_accuracy",
        "prompt followed",
        "Share of what the prompts name (shape, colour, size, background) that is drawn right.",
        "percent",
        MORE,
        _QUALITY,
    ),
    Column(
        "validity", "valid", "Share of images that are a clean scene of the built-in world.", "percent", MORE, _QUALITY
    ),
    Column("clip_score", "CLIPScore", "How well an image fits its prompt, by CLIP.", "figure", MORE, _QUALITY),
    Column("pick_score", "PickScore", "A model of which image people prefer.", "figure", MORE, _QUALITY),
    Column("image_reward", "ImageReward", "A model of how people rate an image.", "figure", MORE, _QUALITY),
    Column("hps_v21", "HPSv2.1", "A model of which image people prefer.", "figure", MORE, _QUALITY),
    Column("clip_iqa", "CLIP-IQA", "How good an image looks, whatever its prompt, by CLIP.", "figure", MORE, _QUALITY),
    Column("maniqa", "MANIQA", "A model of how people rate the quality of an image.", "figure", MORE, _QUALITY),
    Column(
        "visual_quality_r1",
        "VisualQuality-R1",
        "A language model that looks at an image and rates its quality from 1 to 5.",
        "figure",
        MORE,
        _QUALITY,
    ),
    Column(
        "saturation",
        "saturated",
        "Share of colour values that are exactly 0 or 255: above the teacher's, colours are overdriven.",
        "percent1",
        group=_QUALITY,
    ),
    Column("num_inference_steps", "steps", "Network steps to draw one image.", "count", group=_DRAWING),
    Column(
        "seconds",
        "time",
        "Wall-clock time of this row, training included where it was trained.",
        "duration",
        group=_DRAWING,
    ),
    Column("peak_memory_bytes", "memory", "Largest memory use while the row was made.", "bytes", group=_DRAWING),
)
COST = (
    Column("updates", "updates", "Student updates that the budget allowed.", "count"),
    Column("training_seconds", "training", "Training time of one run, without checkpoints and sampling.", "duration"),
    Column(
        "seconds_per_cycle",
        "per cycle",
        "Time of one cycle (the fake score's updates and one of the student), the mean over a run but for its first.",
        "seconds",
    ),
    Column(
        "forwards_per_update", "forward", "Network calls on one sample in one cycle; a guided call is two.", "count"
    ),
    Column("backwards_per_update", "backward", "Of them, those with a backward pass.", "count"),
    Column(
        "extra_parameters",
        "extra parameters",
        "Parameters that training needs beside teacher, student and fake score: a discriminator, a perceptual "
        "backbone.",
        "parameters",
    ),
    Column(
        "training_memory_bytes", "memory", "Largest memory use of a training: the GPU's where there is one.", "bytes"
    ),
)
STABILITY = (
    Column(
        "diversity_share_deviation",
        "spread of diversity kept",
        "Standard deviation over the training seeds.",
        "percent1",
    ),
    Column("quality_deviation", "spread of quality", "The same of the quality.", "percent1"),
    Column(
        "loss_spikes",
        "loss spikes",
        "How often a loss leaves its usual size in a run: above 5 times the median of the 50 updates before.",
        "tenths",
    ),
    Column("grad_norm_spikes", "gradient spikes", "The same of gradient norms, before they are clipped.", "tenths"),
    Column(
        "failed_runs",
        "failed runs",
        "Runs that ended because a loss or gradient was no longer finite; no mean has them in it.",
        "count",
    ),
)
# What is said of the teacher on the same prompts and seeds.
REFERENCE = "reference_"
# What is no score, or is said elsewhere on the page.
_UNSHOWN = ("num_prompts", "images_per_prompt", "total_variation_floor", "failed")


def shown_columns(arms: dict[str, ArmReport]) -> list[Column]:
    """NUMBERS, then every other figure that a row has: under its own key, without an explanation.

    What a row says of the teacher ("reference_...") is left to the teacher's row, where there is one.
    """
    known = {column.key for column in (*NUMBERS, *COST, *STABILITY)} | set(_UNSHOWN)
    keys = [key for key in _numeric_keys(arms) if key not in known and not key.endswith("_failures")]
    if "teacher" in arms:
        keys = [key for key in keys if not key.startswith(REFERENCE)]
    return [*NUMBERS, *(column_of(key, "Further figures") for key in keys)]


def column_of(key: str, group: str = "") -> Column:
    """The column of a figure, by its key."""
    own = key.removeprefix(REFERENCE)
    column = next((column for column in NUMBERS if column.key == own), Column(own, own.replace("_", " "), ""))
    if own != key:
        column = replace(column, key=key, heading=f"{column.heading}, the teacher's", explanation="", better="")
    return replace(column, group=group)


def _numeric_keys(arms: dict[str, ArmReport]) -> list[str]:
    return list(dict.fromkeys(key for arm in arms.values() for key, value in arm.metrics.items() if is_number(value)))
