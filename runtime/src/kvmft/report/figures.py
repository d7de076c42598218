"""Medians, quantiles and fitted lines of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def summary(values: Sequence[float]) -> dict[str, Any]:
    """n, median, p99 and max of `values`; nulls when there are none."""
    if not values:
        return {"n": 0, "p50": None, "p99": None, "max": None}
    p50, p99 = (round(float(np.percentile(values, each)), 3) for each in (50, 99))
    return {"n": len(values), "p50": p50, "p99": p99, "max": round(max(values), 3)}


def line(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The straight line through `points` (x, y) with least squares: `offset`, `slope`, and `r2`."""
    x, y = np.array(points, dtype=float).T
    slope, offset = np.polyfit(x, y, 1)
    spread = float(((y - y.mean()) ** 2).sum())
    rest = float(((y - (offset + slope * x)) ** 2).sum())
    return {"offset": round(float(offset), 6), "slope": round(float(slope), 9),
            "r2": round(1 - rest / spread, 4) if spread else 1.0}  # fmt: skip
