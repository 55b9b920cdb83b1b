"""Checks of numbers in options."""

from __future__ import annotations

from math import isfinite

import typer


def finite(value: float) -> float:
    """For `callback=`: returns the value unless it is infinite or NaN, which `min` lets pass."""
    if not isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value
