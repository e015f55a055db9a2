"""What families that predict eps or v on discrete timesteps have in common."""

from typing import Any

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, LCMScheduler, UNet2DConditionModel
from torch import Tensor

from dpdmd.method.denoiser import Condition
from dpdmd.method.grids import Grid
from dpdmd.method.paths import Prediction, VPPath, from_eps, from_v
from dpdmd.method.rollout import StudentKind
from dpdmd.models.base import CALLBACK, RENEW_NOISE, LatentShape
from dpdmd.models.saved_scheduler import MOST_TIMESTEPS, require_noise_options
from dpdmd.models.stock import StockAdapter
from dpdmd.store.errors import InputError

CONVERSIONS = {"epsilon": ("eps", from_eps), "v_prediction": ("v", from_v)}


class NoiseAdapter(StockAdapter):
    """An adapter of a variance-preserving model with discrete timesteps.

    Teacher and student take DDIM steps with trailing timesteps (arXiv 2305.08891, table 2), from the noisiest timestep
    to clean data. Only the betas and the prediction type of the saved scheduler are used.
    """

    path: VPPath
    vae_class = AutoencoderKL

    def __init__(self, source: str):
        super().__init__(source)
        self.noise_schedule = _noise_schedule(source, self.scheduler_config)
        self._otherwise = require_noise_options(self.scheduler_config, source)
        self.prediction_space, self._convert = CONVERSIONS[self.noise_schedule["prediction_type"]]
        self.path = VPPath(self._scheduler("ode").alphas_cumprod)

    def scheduler_from(self, config: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """As it is: its training schedule is used, its solver and its times are not."""
        return config, None

    @property
    def notes(self) -> list[str]:
        """What the saved scheduler would do otherwise."""
        if not self._otherwise:
            return []
        return [
            "the teacher takes DDIM steps on trailing timesteps; of its saved scheduler is not used: "
            + ", ".join(self._otherwise)
        ]

    def timestep(self, t: Tensor) -> Tensor:
        """The nearest timestep to each time; t = 0 becomes the first timestep."""
        return (self.path.index(t) - 1).clamp_min(0)

    def converted(self, x_t: Tensor, output: Tensor, t: Tensor) -> Prediction:
        """The prediction of a network that returns eps or v."""
        return self._convert(self.path, x_t, output, t)

    def stock_grid(self, num_steps: int, latent_shape: LatentShape | None = None) -> Grid:
        """DDIMScheduler's trailing timesteps as t = (timestep + 1) / T, followed by 0."""
        scheduler = self._scheduler("ode")
        scheduler.set_timesteps(num_steps)
        num_timesteps = self.noise_schedule["num_train_timesteps"]
        # For some numbers of steps (61 is the smallest) the stock rounding adds a timestep -1.
        timesteps = scheduler.timesteps.tolist()[:num_steps]
        return Grid((*((timestep + 1) / num_timesteps for timestep in timesteps), 0.0))

    def uniform_grid(
        self, num_steps: int, latent_shape: LatentShape | None = None, *, shift: float | None = None
    ) -> Grid:
        """The stock grid: trailing timesteps are uniform in the model's own time."""
        return self.stock_grid(num_steps)

    def student_scheduler(self, kind: StudentKind, grid: Grid, latent_shape: LatentShape | None = None) -> Any:
        """The scheduler that uses `timesteps=` unchanged and ends at clean data, the same for every grid.

        "ode": DDIM in the form of the first-order DPM-Solver++ (arXiv 2211.01095), because DDIMScheduler does not
        accept timesteps, and steps past them when their number does not divide T.
        "renoise": LCMScheduler with negligible boundary scalings and every timestep allowed. "renoise_last": DDIM, and
        LCMScheduler for the last two steps (`renewal_code`).
        """
        return self._scheduler(kind)

    def _scheduler(self, kind: StudentKind) -> DPMSolverMultistepScheduler | LCMScheduler:
        if kind != "renoise":
            return DPMSolverMultistepScheduler(**self.noise_schedule, solver_order=1, timestep_spacing="trailing")
        num_timesteps = self.noise_schedule["num_train_timesteps"]
        return LCMScheduler(**self.noise_schedule, **_lcm_settings(num_timesteps))

    def renewal_code(self, num_steps: int) -> str:
        """The last two steps are LCMScheduler's, on the same timesteps."""
        settings = ", ".join(f"{k}={v}" for k, v in _lcm_settings(self.noise_schedule["num_train_timesteps"]).items())
        given = "pipe, i, t, tensors" if self.callback == CALLBACK else "i, t, latents"
        return (
            "from diffusers import LCMScheduler\n\n"
            f"ddim, lcm = pipe.scheduler, LCMScheduler.from_config(pipe.scheduler.config, {settings})\n\n\n"
            f"def {RENEW_NOISE}({given}):  # the step before the last adds fresh noise\n"
            f"    if i == {num_steps - 3}:\n"
            "        lcm.set_timesteps(timesteps=pipe.scheduler.timesteps.tolist(), device=t.device)\n"
            f"    pipe.scheduler = lcm if {num_steps - 3} <= i < {num_steps - 1} else ddim\n"
            "    return {}\n"
        )

    def call_arguments(self, scheduler: Any, grid: Grid, embedded_guidance: float | None = None) -> dict[str, Any]:
        """The number of steps if the scheduler draws the grid by itself, else its timesteps; no guidance.

        Raises ValueError for times that are not timesteps of the model.
        """
        num_timesteps = self.noise_schedule["num_train_timesteps"]
        timesteps = [round(num_timesteps * t) - 1 for t in grid.times[:-1]]
        if any(abs(num_timesteps * t - (i + 1)) > 1e-3 for i, t in zip(timesteps, grid.times[:-1], strict=True)):
            raise ValueError(f"times of a student must be multiples of 1 / {num_timesteps}, got {grid.times}")
        scheduler.set_timesteps(grid.num_steps)
        if scheduler.timesteps.tolist() == timesteps:
            return {"num_inference_steps": grid.num_steps} | self.unguided
        return {"timesteps": timesteps} | self.unguided


class UNetAdapter(NoiseAdapter):
    """A `NoiseAdapter` whose network is Stable Diffusion's U-Net."""

    network_class = UNet2DConditionModel
    network_name = "unet"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    block_lists = ("down_blocks", "up_blocks")
    feature_lists = ("down_blocks", "mid_block")  # pyright: ignore[reportAssignmentType]  # a property by default

    def __init__(self, source: str):
        super().__init__(source)
        if self.network_config.get("time_cond_proj_dim") is not None:
            raise InputError(f"{source}: a U-Net with a guidance embedding (time_cond_proj_dim) is not supported")

    def picture_tokens(self, output: Any, x_t: Tensor, cond: Condition) -> Tensor:
        """The feature map as tokens; down blocks return it first, followed by their skip connections."""
        return (output[0] if isinstance(output, tuple) else output).flatten(2).transpose(1, 2)


def _lcm_settings(num_timesteps: int) -> dict[str, Any]:
    """Every timestep allowed, and boundary scalings too small to count."""
    return {"original_inference_steps": num_timesteps, "timestep_scaling": 1e4}


def _noise_schedule(source: str, config: dict[str, Any]) -> dict[str, Any]:
    """The training schedule in the saved scheduler's configuration: timesteps, betas, prediction type."""
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    if any(name not in config for name in names):
        raise InputError(
            f"{source}: its scheduler, a {config.get('_class_name')}, has no noise schedule: the config for a "
            "model that predicts noise "
            f"must contain {', '.join(names)}"
        )
    schedule = {name: config[name] for name in names} | {
        "trained_betas": config.get("trained_betas"),
        "prediction_type": config.get("prediction_type", "epsilon"),
        "rescale_betas_zero_snr": config.get("rescale_betas_zero_snr", False),
    }
    timesteps = schedule["num_train_timesteps"]
    if not isinstance(timesteps, int) or not 1 <= timesteps <= MOST_TIMESTEPS:
        raise InputError(
            f"{source}: num_train_timesteps of its scheduler must be a whole number up to {MOST_TIMESTEPS}, "
            f"got {timesteps!r}"
        )
    if schedule["prediction_type"] not in CONVERSIONS:
        raise InputError(
            f"{source}: prediction_type must be one of {', '.join(CONVERSIONS)}, got {schedule['prediction_type']!r}"
        )
    if schedule["rescale_betas_zero_snr"] and schedule["prediction_type"] == "epsilon":
        raise InputError(
            f"{source}: rescale_betas_zero_snr needs prediction_type 'v_prediction', got 'epsilon': at zero "
            "signal-to-noise ratio, predicting eps does not determine the image"
        )
    return schedule
