"""The one table of metrics: what each number is called, what it means, how it is written, and which way is better.

Reports, model cards, comparisons, benchmarks and docs/evaluation.md all take their words from here.
"""

from dataclasses import dataclass, replace

HIGHER, LOWER = "higher is better", "lower is better"
DIVERSITY, LIKENESS, QUALITY = "Diversity", "Likeness to the teacher", "Quality"
SAMPLING, COST, STABILITY = "Making the images", "Cost", "Stability"
# What starts the key of a metric that was measured on the teacher's images.
REFERENCE = "reference_"


@dataclass(frozen=True)
class Metric:
    """One number that is measured.

    key: in metrics.json. heading: of its row or column. meaning: one or two sentences. style: how it is written, see
    `evaluate.words.writer`. better: HIGHER, LOWER, or "" where neither is. group: the heading that it is listed under.
    """

    key: str
    heading: str
    meaning: str
    style: str = "number"
    better: str = ""
    group: str = ""

    @property
    def explanation(self) -> str:
        """The meaning, and which way is better, as sentences; "" when neither is known."""
        direction = f"{self.better.capitalize()}." if self.better else ""
        return " ".join(filter(None, (self.meaning, direction)))


METRICS = (
    Metric(
        "diversity_share",
        "diversity kept",
        "Diversity divided by the teacher's on the same prompts and seeds: 1, or 100 %, is as diverse as the teacher.",
        "percent",
        group=DIVERSITY,
    ),
    Metric(
        "diversity_share_worst_tenth",
        "kept in the worst tenth",
        "Diversity kept in the tenth of prompts that keep least. A good mean may hide prompts that collapsed.",
        "percent",
        group=DIVERSITY,
    ),
    Metric(
        "prompts_near_reference",
        "prompts near the teacher",
        "Share of prompts whose diversity is within 20 % of the teacher's. A mean near 100 % may hide that some "
        "prompts collapse while others spread.",
        "percent",
        HIGHER,
        DIVERSITY,
    ),
    Metric(
        "diversity",
        "diversity",
        "How different the images of one prompt are: 1 minus the mean cosine similarity of their features over all "
        "pairs. 0 means that all are alike.",
        "decimal",
        group=DIVERSITY,
    ),
    Metric(
        "spatial_diversity_share",
        "spatial diversity kept",
        "Spatial diversity divided by the teacher's.",
        "percent",
        group=DIVERSITY,
    ),
    Metric(
        "spatial_diversity",
        "spatial diversity",
        "Diversity of the features at one place of the image, averaged over the places of a grid. It sees where things "
        "are and how they are turned.",
        "decimal",
        group=DIVERSITY,
    ),
    Metric("vendi_share", "Vendi score kept", "Vendi score divided by the teacher's.", "percent", group=DIVERSITY),
    Metric(
        "vendi",
        "Vendi score",
        "How many different images a prompt effectively has, from 1 to the number of its images.",
        "decimal",
        group=DIVERSITY,
    ),
    Metric(
        "perceptual_diversity_share",
        "perceptual diversity kept",
        "Perceptual diversity divided by the teacher's.",
        "percent",
        group=DIVERSITY,
    ),
    Metric(
        "perceptual_diversity",
        "perceptual diversity",
        "How different the images of one prompt look: their mean LPIPS-type distance over all pairs.",
        "decimal",
        group=DIVERSITY,
    ),
    Metric(
        "effective_modes",
        "effective modes",
        "How many values a property that the prompt leaves open effectively takes: the exponential of its entropy. It "
        "is read from the images themselves, so overdriven colours do not raise it.",
        "decimal",
        group=DIVERSITY,
    ),
    Metric(
        "effective_modes_mean",
        "modes kept",
        "Effective modes divided by what exact sampling of the built-in world gives: 1, or 100 %, when nothing is "
        "lost.",
        "percent",
        group=DIVERSITY,
    ),
    Metric(
        "recall",
        "recall",
        "Share of the teacher's images that lie in the neighbourhood of one of the student's.",
        "percent",
        HIGHER,
        LIKENESS,
    ),
    Metric(
        "coverage",
        "coverage",
        "Share of the teacher's images that have one of the student's in their neighbourhood.",
        "percent",
        HIGHER,
        LIKENESS,
    ),
    Metric(
        "precision",
        "precision",
        "Share of the student's images that lie in the neighbourhood of one of the teacher's.",
        "percent",
        HIGHER,
        LIKENESS,
    ),
    Metric(
        "density",
        "density",
        "In how many neighbourhoods of the teacher's images a student's image lies, divided by the expected number. It "
        "may exceed 1.",
        "decimal",
        HIGHER,
        LIKENESS,
    ),
    Metric(
        "frechet",
        "Frechet distance",
        "Distance between Gaussians fitted to the features of the student's and of the teacher's images. With few "
        "images it is too large.",
        "number",
        LOWER,
        LIKENESS,
    ),
    Metric(
        "kid",
        "kernel distance",
        "Kernel distance (KID) between the features of the student's and of the teacher's images. It has no bias from "
        "few images, so it may be slightly negative for sets that are alike.",
        "number",
        LOWER,
        LIKENESS,
    ),
    Metric(
        "total_variation_reference",
        "total variation to the teacher",
        "Distance, 0 to 1, between what the student and what the teacher choose where the prompt leaves a choice. A "
        "student can be diverse and still draw other things than its teacher.",
        "decimal",
        LOWER,
        LIKENESS,
    ),
    Metric(
        "total_variation_true",
        "total variation to the truth",
        "Distance, 0 to 1, between what the student chooses where the prompt leaves a choice and the built-in world's "
        "own distribution. Few images alone give a positive distance.",
        "decimal",
        LOWER,
        LIKENESS,
    ),
    Metric(
        "quality",
        "quality",
        "Clean scenes times prompt followed, averaged over prompts: about the share of images that are clean and as "
        "prompted. For images that are not of the built-in world it is the precision.",
        "percent",
        HIGHER,
        QUALITY,
    ),
    Metric(
        "named_accuracy",
        "prompt followed",
        "Share of what the prompts name (shape, colour, size, background) that is drawn right.",
        "percent",
        HIGHER,
        QUALITY,
    ),
    Metric(
        "validity",
        "clean images",
        "Share of images that are a clean scene or drawing, no blend or blur, of the built-in world.",
        "percent",
        HIGHER,
        QUALITY,
    ),
    Metric("clip_score", "CLIPScore", "How well an image fits its prompt, judged by CLIP.", "number", HIGHER, QUALITY),
    Metric(
        "pick_score",
        "PickScore",
        "How much people would like an image for its prompt, predicted by a network (Pick-a-Pic).",
        "number",
        HIGHER,
        QUALITY,
    ),
    Metric(
        "image_reward",
        "ImageReward",
        "How people would rate an image for its prompt, predicted by a network.",
        "number",
        HIGHER,
        QUALITY,
    ),
    Metric(
        "hps_v21",
        "HPSv2.1",
        "How much people would like an image for its prompt, predicted by a network (Human Preference Score).",
        "number",
        HIGHER,
        QUALITY,
    ),
    Metric(
        "clip_iqa",
        "CLIP-IQA",
        "How good an image looks, whatever its prompt, judged by CLIP.",
        "number",
        HIGHER,
        QUALITY,
    ),
    Metric(
        "maniqa",
        "MANIQA",
        "How people would rate the quality of an image, whatever its prompt, predicted by a network.",
        "number",
        HIGHER,
        QUALITY,
    ),
    Metric(
        "visual_quality_r1",
        "VisualQuality-R1",
        "Quality of an image from 1 to 5, whatever its prompt, judged by a vision-language model.",
        "number",
        HIGHER,
        QUALITY,
    ),
    Metric(
        "saturation",
        "saturated",
        "Share of colour values that are exactly 0 or 255. More than the teacher's means that colours are overdriven.",
        "percent1",
        group=QUALITY,
    ),
    Metric(
        "speedup",
        "speed",
        "How many images it draws in the time that its teacher takes for one, from prompt to image. Both were timed in "
        "turn by one process on one machine.",
        "times",
        HIGHER,
        SAMPLING,
    ),
    Metric(
        "seconds_per_image",
        "time per image",
        "Time from prompt to image, with encoding and decoding: the median of several draws.",
        "seconds",
        LOWER,
        SAMPLING,
    ),
    Metric("num_inference_steps", "steps", "Sampling steps per image.", "count", group=SAMPLING),
    Metric(
        "seconds",
        "time",
        "Wall-clock time of a run: training, if it was trained, and sampling.",
        "duration",
        group=SAMPLING,
    ),
    Metric("peak_memory_bytes", "memory", "Peak main memory of a run's processes.", "bytes", group=SAMPLING),
    Metric("updates", "updates", "Student updates of a run.", "count", group=COST),
    Metric(
        "training_seconds",
        "training time",
        "Training time of a run, without checkpoints and sampling.",
        "duration",
        group=COST,
    ),
    Metric(
        "seconds_per_cycle",
        "time per cycle",
        "Time of one cycle, which is one student update and the fake score's updates before it: the mean over a run "
        "without its first cycle.",
        "seconds",
        group=COST,
    ),
    Metric(
        "forwards_per_update",
        "forward calls",
        "Network calls per sample in one cycle. A guided call counts as two.",
        "count",
        group=COST,
    ),
    Metric(
        "backwards_per_update",
        "backward calls",
        "Network calls per sample in one cycle that have a backward pass.",
        "count",
        group=COST,
    ),
    Metric(
        "extra_parameters",
        "extra parameters",
        "Parameters that training needs in addition to teacher, student and fake score, such as those of a "
        "discriminator or a perceptual backbone.",
        "parameters",
        group=COST,
    ),
    Metric(
        "training_memory_bytes",
        "training memory",
        "Peak memory of a training: the GPU's where there is one.",
        "bytes",
        group=COST,
    ),
    Metric(
        "diversity_share_deviation",
        "spread of diversity kept",
        "Standard deviation of diversity kept over the training seeds.",
        "percent1",
        LOWER,
        STABILITY,
    ),
    Metric(
        "quality_deviation",
        "spread of quality",
        "Standard deviation of quality over the training seeds.",
        "percent1",
        LOWER,
        STABILITY,
    ),
    Metric(
        "loss_spikes",
        "loss spikes",
        "How often in a run a loss rises above 5 times the median of the 50 updates before.",
        "tenths",
        LOWER,
        STABILITY,
    ),
    Metric(
        "grad_norm_spikes",
        "gradient spikes",
        "How often in a run a gradient norm, before clipping, rises above 5 times the median of the 50 updates before.",
        "tenths",
        LOWER,
        STABILITY,
    ),
    Metric(
        "failed",
        "failed runs",
        "Runs that ended because a loss or gradient was no longer finite. They are in no mean.",
        "count",
        LOWER,
        STABILITY,
    ),
)
BY_KEY = {metric.key: metric for metric in METRICS}
GROUPS = {group: tuple(m for m in METRICS if m.group == group) for group in dict.fromkeys(m.group for m in METRICS)}
# What images are judged by, and what a model card shows.
SCORES = (*GROUPS[DIVERSITY], *GROUPS[LIKENESS], *GROUPS[QUALITY])
# Keys of the few metrics that fit into a table in a terminal.
HEADLINE = (
    "diversity",
    "diversity_share",
    "prompts_near_reference",
    "named_accuracy",
    "validity",
    "effective_modes",
    "total_variation_reference",
    "frechet",
)


def metric_of(key: str) -> Metric:
    """The metric of a key of metrics.json; one that the table lacks is called by its key.

    A key that begins with "reference_" is the metric of the rest of it, measured on the teacher's images.
    """
    own = key.removeprefix(REFERENCE)
    metric = BY_KEY.get(own) or Metric(own, own.replace("_", " "), "")
    if own == key:
        return metric
    return replace(metric, key=key, heading=f"{metric.heading}, the teacher's", meaning="", better="")
