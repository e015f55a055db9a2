"""Bytes that processes send in one update, and the efficiency to expect from them: a calculation, not a measurement.

k processes share a network, and each machine has `gpus` of them. Of S bytes in all, a gathering or a scattering
reduction sends (k - 1) / k S from each process and over each machine's link, and a reduction that leaves the sum in all
of them twice that (ring algorithms, as NCCL's).
"""

from dataclasses import dataclass

from dpdmd.method.roles import TRAINED_ROLES, Role
from dpdmd.method.terms.adversarial import Adversarial
from dpdmd.method.terms.anchor import DiversityAnchor
from dpdmd.method.terms.dmd import Dmd
from dpdmd.models.base import ModelAdapter
from dpdmd.planning.cost import BYTES, NetworkSizes, network_sizes
from dpdmd.planning.hours import SHARE, card_for, percent, update_operations
from dpdmd.recipe.plan import Plan

GIGA = 1e9


@dataclass(frozen=True)
class Cluster:
    """Machines of `gpus` GPUs each; link: gigabits per second that one machine sends to others at most."""

    nodes: int
    gpus: int
    link: float

    @property
    def number(self) -> int:
        """Processes, one for each GPU."""
        return self.nodes * self.gpus


@dataclass(frozen=True)
class Traffic:
    """Bytes sent in one update: by each process within its machine, and by each machine over its link to others."""

    within: float
    across: float


def calls_per_micro_batch(plan: Plan) -> dict[Role, tuple[float, float]]:
    """Calls of each role's network for one micro-batch of an update: (forward, backward), on average over many.

    A guided call counts once, since both halves are one call. At each a sharded network is gathered.
    """
    n, objective, m = plan.student.grid.num_steps, plan.objective, plan.data.fake_updates
    anchored, simulated = int(objective.detach_first), plan.student.is_simulated
    trained = 1 if simulated else n - anchored
    num_rollouts = {False: m, True: 1, "student": 0}[plan.data.reuse_samples]
    with_graph, without = _first_step(plan) if anchored else (0.0, 0.0)
    student = num_rollouts * n + n - anchored + with_graph + without, trained + with_graph
    calls: dict[Role, tuple[float, float]] = {"student": student, "fake_score": (m, m), "teacher": (0, 0)}

    def add(role: Role, forward: float, backward: float = 0) -> None:
        calls[role] = calls[role][0] + forward, calls[role][1] + backward

    for term in objective.terms:
        share = 1 / term.every
        if isinstance(term, Dmd):
            add("fake_score", share)
            add("teacher", share)
        elif isinstance(term, DiversityAnchor):
            steps = min(term.num_steps, term.coarse_steps or term.num_steps)
            add("teacher", with_graph * (steps + (term.target == "x0")))
        elif isinstance(term, Adversarial) and objective.discriminator is not None:
            add(objective.discriminator.features, share, share)
        else:
            guided = plan.teacher.guidance.num_forwards
            add("teacher", share * term.num_forwards / guided)
    if objective.discriminator is not None:
        add(objective.discriminator.features, 2 * m)
    return calls


def _first_step(plan: Plan) -> tuple[float, float]:
    """Shares of micro-batches in which the anchored step 1 is called (with a graph, without one)."""
    size, many, with_graph, without = plan.data.batch_size, 1000, 0, 0
    for number in range(many):
        kept = max(term.num_first(size, number) if number % term.every == 0 else 0 for term in plan.objective.terms)
        with_graph, without = with_graph + (kept > 0), without + (kept < size)
    return with_graph / many, without / many


def update_traffic(plan: Plan, sizes: NetworkSizes, cluster: Cluster) -> Traffic:
    """Bytes of one student update with its fake-score updates, in the layout of train.shard on this cluster."""
    n, g, r = cluster.number, cluster.gpus, cluster.nodes
    adapted, adapters = plan.lora.roles, len(plan.lora.roles) * sizes.adapter
    trained = {role: sizes.adapter if role in adapted else sizes.network for role in TRAINED_ROLES}
    updates = {"student": 1, "fake_score": plan.data.fake_updates}
    if not plan.compute.shard:
        summed = BYTES * sum(updates[role] * trained[role] for role in TRAINED_ROLES)
        return Traffic(2 * _ring(n) * summed, 2 * _ring(n) * summed if r > 1 else 0.0)
    number_bytes = 2 if plan.compute.in_bf16 else BYTES
    shared = sizes.network + adapters
    gathered, scattered = 0.0, 0.0
    for role, (forward, backward) in calls_per_micro_batch(plan).items():
        whole = shared if role in adapted or role == "teacher" else sizes.network
        gathered += plan.data.accumulation * number_bytes * whole * (forward + backward)
        if role in TRAINED_ROLES:
            scattered += BYTES * trained[role] * _reductions(plan, role)
    if plan.compute.shard == "machine":
        return Traffic(_ring(g) * (gathered + scattered), 2 * _ring(r) * scattered)
    sent = _ring(n) * (gathered + scattered)
    return Traffic(sent, sent if r > 1 else 0.0)


def _reductions(plan: Plan, role: Role) -> int:
    """How often the gradient of a role is reduced in one iteration, as FSDP2 does it: once in an update.

    Where several calls have a graph, the first backward pass through a block reduces what was accumulated before.
    """
    if role == "fake_score":
        return plan.data.fake_updates
    several = calls_per_micro_batch(plan)["student"][1] > 1
    return 2 if several and plan.data.accumulation > 1 else 1


def _ring(number: int) -> float:
    return (number - 1) / number


def describe_traffic(plan: Plan, adapter: ModelAdapter, cluster: Cluster, gib: float) -> str:
    """Bytes over each link, and the efficiency to expect, in lines that say that they are calculated."""
    card, traffic = card_for(gib), update_traffic(plan, network_sizes(plan, adapter), cluster)
    peak = card.bf16 if plan.compute.in_bf16 else card.fp32
    computing = update_operations(plan, adapter) / (SHARE * peak * 1e12)
    within = traffic.within / (card.link * GIGA) if cluster.gpus > 1 else 0.0
    across = 8 * traffic.across / (cluster.link * GIGA)
    sending = within + across
    layout = {False: "copies", True: "shares over all", "machine": "shares within a machine, replicas across"}
    return "\n".join(
        [
            f"{cluster.nodes} x {cluster.gpus} GPUs, {layout[plan.compute.shard]}, calculated for one update of "
            f"{plan.data.batch_size * plan.data.accumulation * cluster.number} samples:",
            f"  within a machine each GPU sends {traffic.within / 2**30:.3g} GiB, {within:.3g} s at the {card.link:g} "
            f"GB/s of a {card.name}'s data sheet",
            f"  between machines each sends {traffic.across / 2**30:.3g} GiB, {across:.3g} s at {cluster.link:g} "
            "Gbit/s",
            f"  computing takes {computing:.3g} s at {SHARE:.0%} of the peak: efficiency "
            f"{percent(computing / (computing + sending))} if nothing is sent meanwhile, "
            f"{percent(computing / max(computing, sending))} if all of it is",
        ]
    )
