"""Checks of numbers in options, and numbers as text."""

from __future__ import annotations

from math import isfinite

import typer


def finite(value: float | None) -> float | None:
    """For `callback=`: returns the value unless it is infinite or NaN, which `min` lets pass."""
    if value is not None and not isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def seconds_text(seconds: float) -> str:
    """Returns three digits with their unit: "12.3 ms", "1.23 s"."""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
