"""A measure's value with its interval: the smallest part of ``metrics.json``, and the base of all its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Part(BaseModel):
    """Base of every part. It accepts numpy's numbers. NaN, which JSON does not have, becomes null: not measurable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_numpy(cls, data: Any) -> Any:
        return _without_numpy(data)


class Score(Part):
    """The value of a measure with its interval."""

    mean: float | None = Field(description="null: not measurable")
    ci95: tuple[float, float] | None = Field(description="95 % interval by bootstrap over patients: low, high")
    n: int = Field(ge=0, description="patients; slices in the task `tumour`; slices or samples where the field says so")

    @field_validator("ci95", mode="before")
    @classmethod
    def _both_ends(cls, ends: Any) -> Any:
        return None if ends is not None and None in ends else ends

    @field_validator("ci95")
    @classmethod
    def _in_order(cls, ends: tuple[float, float] | None) -> tuple[float, float] | None:
        if ends is not None and ends[0] > ends[1]:
            raise ValueError(f"the low end of the interval is above the high end: {ends}")
        return ends


def _without_numpy(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_numpy(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_numpy(each) for each in value]
    return value


NOT_MEASURED = Score(mean=None, ci95=None, n=0)
