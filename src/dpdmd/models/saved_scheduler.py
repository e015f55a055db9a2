"""What the scheduler saved with a pipeline means for its teacher: understood as in stock diffusers, or refused by name.

A flow's teacher takes Euler steps on the grid of the saved scheduler. Multistep solvers with `flow_shift` are replaced
by Euler steps with the same shift, on their grid up to a thousandth before the shift. Other steps are refused.
"""

import inspect
from typing import Any

import diffusers

from dpdmd.store.errors import InputError

EULER = "FlowMatchEulerDiscreteScheduler"
# Deterministic solvers whose flow grid is shift_time(1 - i / N), up to the first or last thousandth. The flow grid of
# DEISMultistepScheduler does not end at 0.
FLOW_SOLVERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
# Options that give a solver other times or another result, with the value that leaves both alone.
OF_SOLVERS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_dynamic_shifting": False,
    "thresholding": False,
    "final_sigmas_type": "zero",
    "shift_terminal": None,
    "num_train_timesteps": 1000,
}
# Euler's own options are all in the grid that it draws, but for these.
NOISE = "stochastic_sampling"
OF_EULER = {"invert_sigmas": False, NOISE: False, "num_train_timesteps": 1000}
# Options of noise-predicting schedulers that change the prediction. Those that change times are not used (`sdxl.py`).
OF_NOISE = {"thresholding": False, "clip_sample": False, "use_flow_sigmas": False, "snr_shift_scale": None}
MOST_TIMESTEPS = 10**5  # of a noise schedule; public models have 1000
AS_DDIM = ("DDIMScheduler", "EulerDiscreteScheduler")  # the same steps in other variables
TIMES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def flow_config(
    config: dict[str, Any], source: str, *, pipeline_gives_sigmas: bool, is_student: bool = False
) -> tuple[dict[str, Any], str | None]:
    """The configuration of the Euler scheduler of a flow's teacher, and the solver that it replaces, if any.

    pipeline_gives_sigmas: see `models.stock.StockAdapter`. is_student: of an exported student, which may add noise.
    Raises ValueError naming the scheduler's class or option that cannot be had.
    """
    name = config.get("_class_name", EULER)
    if name == EULER:
        _require(config, {key: value for key, value in OF_EULER.items() if not (is_student and key == NOISE)}, source)
        return config, None
    shift = config.get("flow_shift", 1.0)
    if name not in FLOW_SOLVERS or pipeline_gives_sigmas or not config.get("use_flow_sigmas"):
        raise InputError(
            f"{source}: its scheduler is a {name}, and this family needs a {EULER} (flow-matching): save the pipeline "
            f"with one, as pipeline.scheduler = {EULER}(shift={shift})"
        )
    if config.get("prediction_type") != "flow_prediction":
        raise InputError(
            f"{source}: its scheduler, a {name}, must have the prediction_type 'flow_prediction' of a flow, got "
            f"{config.get('prediction_type')!r}"
        )
    if str(config.get("algorithm_type", "")).startswith("sde"):
        raise InputError(
            f"{source}: its scheduler has algorithm_type {config['algorithm_type']!r}, which adds noise in every step; "
            "a teacher must be deterministic"
        )
    _require(config, OF_SOLVERS, source)
    return {"shift": shift}, name


def require_noise_options(config: dict[str, Any], source: str) -> list[str]:
    """Raises ValueError for options of a noise-predicting scheduler that change its predictions.

    Returns what it says otherwise than DDIM on trailing timesteps, with which a teacher's own steps replace it.
    """
    scheduler = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(scheduler, type) and issubclass(scheduler, diffusers.SchedulerMixin)):
        raise InputError(f"{source}: diffusers has no scheduler {config.get('_class_name')!r}")
    # An option that the class does not have is in the file for the sake of other classes.
    known = inspect.signature(scheduler.__init__).parameters
    defaults = {name: parameter.default for name, parameter in known.items()}
    values = defaults | {name: value for name, value in config.items() if name in known}
    _require(values, OF_NOISE, source)
    spacing = values.get("timestep_spacing", "linspace")
    return [
        *([] if scheduler.__name__ in AS_DDIM else [scheduler.__name__]),
        *(name for name in TIMES if values.get(name)),
        *([] if spacing == "trailing" else [f"timestep_spacing = {spacing!r}"]),
    ]


def _require(config: dict[str, Any], wanted: dict[str, Any], source: str) -> None:
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise InputError(
                f"{source}: the option {name} of its scheduler is {config[name]!r}, which a teacher cannot follow; "
                f"save the pipeline with {name} = {value!r}"
            )
