"""Schedulers of other classes and with other options: the stock scheduler's own grid is the judge."""

import shutil
from pathlib import Path

import diffusers
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from families import FAMILIES

from dpdmd.models.load import load_adapter
from dpdmd.store.files import read_json, write_json

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
NO_FLOWS = ("sdxl", "sdxl_v", "sd1", "sd2", "pixart_sigma")
NO_SIGMAS = ("sd3", "sana")  # flows whose scheduler spaces its steps by itself
SOLVERS = ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]


@pytest.fixture
def with_scheduler(tiny_folder, tmp_path):
    """The adapter of a family whose pipeline was saved with another scheduler."""

    def make(family: str, scheduler):
        shutil.copytree(tiny_folder(family), tmp_path / family, dirs_exist_ok=True)
        shutil.rmtree(tmp_path / family / "scheduler")
        scheduler.save_pretrained(tmp_path / family / "scheduler")
        path = Path(tmp_path / family / "model_index.json")
        write_json(path, read_json(path) | {"scheduler": ["diffusers", type(scheduler).__name__]})
        return load_adapter(str(tmp_path / family))

    return make


@pytest.mark.parametrize("family", NO_SIGMAS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_flow_solver_s_shift_is_that_of_the_teacher_s_euler_steps(solver, family, with_scheduler):
    scheduler = getattr(diffusers, solver)(**FLOW)
    adapter = with_scheduler(family, scheduler)
    for num_steps in (4, 6, 20):
        scheduler.set_timesteps(num_steps)
        # The solvers start or end a thousandth away from noise or data, before the shift.
        assert adapter.stock_grid(num_steps).times == pytest.approx(scheduler.sigmas.tolist(), abs=3e-3)
    assert adapter.uniform_grid(4).times[1] == pytest.approx(0.9)  # 3 * 0.75 / (1 + 2 * 0.75)
    assert family == "sana" or solver in adapter.notes[0]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NO_SIGMAS + NO_FLOWS])
@pytest.mark.parametrize("solver", [*SOLVERS, "FlowMatchHeunDiscreteScheduler"])
def test_a_solver_to_which_the_stock_pipeline_gives_sigmas_is_refused_by_name(solver, family, with_scheduler):
    settings = {} if solver.startswith("Flow") else FLOW
    with pytest.raises(ValueError, match=f"its scheduler is a {solver}, .*FlowMatchEulerDiscreteScheduler"):
        with_scheduler(family, getattr(diffusers, solver)(**settings))


@pytest.mark.parametrize("family", ["sd3", "sana"])
@pytest.mark.parametrize(
    ("scheduler", "named"),
    [
        (diffusers.DPMSolverMultistepScheduler(), "DPMSolverMultistepScheduler"),
        (diffusers.DEISMultistepScheduler(**FLOW), "DEISMultistepScheduler"),
        (diffusers.FlowMatchHeunDiscreteScheduler(), "FlowMatchHeunDiscreteScheduler"),
        (diffusers.FlowMatchLCMScheduler(), "FlowMatchLCMScheduler"),
        (diffusers.EulerDiscreteScheduler(), "EulerDiscreteScheduler"),
        (diffusers.DPMSolverMultistepScheduler(**FLOW | {"prediction_type": "epsilon"}), "prediction_type"),
        (diffusers.DPMSolverMultistepScheduler(**FLOW, use_karras_sigmas=True), "use_karras_sigmas"),
        (diffusers.DPMSolverMultistepScheduler(**FLOW, use_lu_lambdas=True), "use_lu_lambdas"),
        (diffusers.DPMSolverMultistepScheduler(**FLOW, thresholding=True), "thresholding"),
        (diffusers.DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++"), "adds noise"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling"),
        (FlowMatchEulerDiscreteScheduler(num_train_timesteps=500), "num_train_timesteps"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "use_dynamic_shifting"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_teacher_cannot_follow_is_refused_by_name(scheduler, named, family, with_scheduler):
    with pytest.raises(ValueError, match=f"scheduler.*{named}"):
        with_scheduler(family, scheduler)


@pytest.mark.parametrize("option", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_other_spacings_of_the_euler_scheduler_are_drawn_as_it_draws_them(family, option, with_scheduler):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0, **{option: True})
    adapter = with_scheduler(family, scheduler)
    sigmas = [1 - i / 6 for i in range(6)] if family == "flux" else None
    scheduler.set_timesteps(**({"sigmas": sigmas} if sigmas else {"num_inference_steps": 6}))
    assert adapter.stock_grid(6).times == pytest.approx(scheduler.sigmas.tolist(), abs=1e-7)
    plain = with_scheduler(family, FlowMatchEulerDiscreteScheduler(shift=2.0)).stock_grid(6)
    assert adapter.stock_grid(6).times != pytest.approx(plain.times, abs=1e-2)


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    ("scheduler", "named"),
    [
        (diffusers.EDMEulerScheduler(), "EDMEulerScheduler"),
        (FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler"),
        (diffusers.DDIMScheduler(**BETAS), "clip_sample"),
        (diffusers.DDIMScheduler(**BETAS, clip_sample=False, thresholding=True), "thresholding"),
        (diffusers.DPMSolverMultistepScheduler(**BETAS, use_flow_sigmas=True), "use_flow_sigmas"),
        (diffusers.EulerDiscreteScheduler(**BETAS, prediction_type="sample"), "prediction_type"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sdxl_refuses_what_changes_its_predictions(scheduler, named, with_scheduler):
    with pytest.raises(ValueError, match=named):
        with_scheduler("sdxl", scheduler)


def test_sdxl_says_which_spacing_it_does_not_use(with_scheduler):
    solver = diffusers.DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)
    (note,) = with_scheduler("sdxl", solver).notes
    named = "DPMSolverMultistepScheduler, use_karras_sigmas, timestep_spacing = 'linspace'"
    assert note.endswith(f"trailing timesteps; of its saved scheduler is not used: {named}")
    (note,) = with_scheduler("sdxl", diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading")).notes
    assert note.endswith("not used: timestep_spacing = 'leading'")
    assert with_scheduler("sdxl", diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")).notes == []
