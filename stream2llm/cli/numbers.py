"""Checks of numbers in options."""

from __future__ import annotations

from math import isfinite

import typer


def finite(value: float) -> float:
    """For `callback=`: returns the value unless it is infinite or NaN, which `min` lets pass."""
    if not isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def all_finite(values: list[float] | None) -> list[float] | None:
    """Like `finite`, for an option that may be given several times."""
    for value in values or ():
        finite(value)
    return values
