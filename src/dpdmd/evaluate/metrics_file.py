"""metrics.json, as `dpdmd evaluate` writes it, and as others may have edited it."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from dpdmd.evaluate.metrics import BY_KEY
from dpdmd.store.state import Count, State

Interval = Annotated[list[float | None], Field(min_length=2, max_length=2)]


class MetricsFile(State):
    """Metrics by their keys in `evaluate.metrics`, numbers or null, and what they were measured on."""

    num_prompts: Count | None = None
    images_per_prompt: Count | None = None
    intervals: dict[str, Interval | None] | None = None
    per_prompt: list[dict[str, Any]] | None = None
    skipped: dict[str, str] | None = None
    provenance: dict[str, Any] | None = None
    further_features: dict[str, dict[str, Any]] | None = None
    image_size: str | None = None
    further_sizes: dict[str, dict[str, Any]] | None = None
    values: dict[str, list[float | None]] | None = None
    frechet_reliable: bool | None = None

    @model_validator(mode="after")
    def _numbers(self):
        for key, value in (self.model_extra or {}).items():
            if key in BY_KEY and (isinstance(value, bool) or not isinstance(value, int | float | None)):
                raise ValueError(f"{key} should be a number")
        return self
