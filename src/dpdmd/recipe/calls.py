"""How many network calls an update and a validation take, and from these how often a run is validated by default."""

import math
from operator import mul

from dpdmd.recipe.plan import Plan

# Most of the calls of training that validation may take by default.
VALIDATION_SHARE = 0.05
NUM_VALIDATIONS = 10
# Decoding a picture counts as so many calls, about what it takes for Stable Diffusion XL.
DECODING = 2


def forwards_per_update(plan: Plan) -> tuple[float, float]:
    """Network calls per sample for one student update and its M fake-score updates: (forward, backward).

    A guided call counts twice, a call for a discriminator's features as a full one. With one random step per sample a
    rollout takes (first trained step + N) / 2 calls on average, and more when the micro-batch is smaller than the
    number of such steps, since a call is for at least one sample. A term counts by its share of the updates. Only the
    denoising network is counted, not a perceptual term's autoencoder and backbone, nor teacher samples that are kept.
    Of several sizes it is the mean.
    """
    if len(plan.sizes) > 1:
        of_sizes = [_forwards_at(at) for at in plan.at_each_size]
        shares = [size.share for size in plan.sizes]
        forward, backward = (sum(map(mul, shares, calls)) for calls in zip(*of_sizes, strict=True))
        return forward, backward
    return _forwards_at(plan)


def _forwards_at(plan: Plan) -> tuple[float, float]:
    """`forwards_per_update` of updates at the plan's own size."""
    n, objective, m = plan.student.grid.num_steps, plan.objective, plan.data.fake_updates
    anchored = int(objective.detach_first)
    is_simulated = plan.student.is_simulated
    rollout = anchored + 1 + _simulated(n - anchored, plan.data.batch_size) if is_simulated else n
    num_rollouts = {False: m, True: 1, "student": 0}[plan.data.reuse_samples]
    forward = num_rollouts * rollout + m + rollout + sum(t.num_forwards / t.every for t in objective.terms)
    backward = m + (1 if is_simulated else n - anchored)
    if anchored:
        # Step 1 has a graph only in updates and for samples of which a term needs it: the mean of many micro-batches.
        many, batch_size = 1000, plan.data.batch_size
        kept = [sum(t.num_first(batch_size, i) for i in range(many)) / (many * t.every) for t in objective.terms]
        backward += max(kept) / batch_size
    if plan.feature_blocks:
        # Features of real samples and the student's; the student's term backpropagates to its samples.
        forward += 2 * m
        backward += 1
    return forward, backward


def _simulated(num_steps: int, batch_size: int) -> float:
    """Mean number of calls without graph per sample, before one random step of `num_steps`."""
    return sum(max(going_on / num_steps, 1 / batch_size) for going_on in range(1, num_steps))


def calls_per_picture(plan: Plan) -> tuple[int, int]:
    """Network calls for one picture of a validation: (of the teacher, once; of the student, in each validation).

    Drawing it, and letting the teacher denoise it once. With a moving average there are two students to look at.
    """
    denoising = plan.teacher.guidance.num_forwards
    students = 2 if plan.optimiser.ema_decay else 1
    once = plan.teacher.grid.num_steps * plan.teacher.guidance.num_forwards + denoising
    return once, students * (plan.student.grid.num_steps + denoising)


def num_validations(plan: Plan) -> int:
    """How often a run is validated: every `validation.every` updates and after the last; never if it is shorter."""
    every, num_updates = plan.validation.every, plan.budget.num_updates
    return math.ceil(num_updates / every) if 0 < every <= num_updates else 0


def validation_interval(plan: Plan) -> int:
    """Updates between validations by default: ten in a run, or fewer, so that they take 5 % of the calls at most.

    At the first validation the teacher's pictures are drawn as well; it comes when both are 5 % of the updates so far.
    0, which is none at all, where the run is too short for that. A backward pass counts as two calls.
    """
    forward, backward = forwards_per_update(plan)
    update = VALIDATION_SHARE * plan.data.batch_size * plan.data.accumulation * (forward + 2 * backward)
    once, each = (plan.validation.num_pictures * calls for calls in calls_per_picture(plan))
    decoding = plan.validation.num_pictures * DECODING
    first = (once + each + 2 * decoding) / update
    num_updates = plan.budget.num_updates
    if plan.budget.max_seconds is not None:
        # It may end anywhere, and is then validated once more.
        interval = math.ceil(first + (each + decoding) / update)
    else:
        most = math.floor((num_updates * update - once - decoding) / (each + decoding))
        interval = math.ceil(max(first, num_updates / max(1, min(most, NUM_VALIDATIONS))))
    return interval if interval <= num_updates else 0
