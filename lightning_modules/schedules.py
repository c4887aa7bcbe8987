"""The learning rate's course over a run."""

from __future__ import annotations

import math
from typing import Annotated, Literal


class WarmupDecay:
    """Factor of the peak learning rate: a linear rise, then a decay.

    Args:
        decay: "linear" or "cosine" down to `final`, or "constant".
        warmup: share of the run that rises.
        final: factor at the end of the run.
    """

    def __init__(
        self,
        decay: Literal["linear", "cosine", "constant"] = "linear",
        warmup: Annotated[float, "0 <= x < 1"] = 0.1,
        final: Annotated[float, "0 <= x <= 1"] = 0.0,
    ):
        if decay not in ("linear", "cosine", "constant"):
            raise ValueError(f"decay={decay}: must be linear, cosine or constant")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup={warmup}: must be at least 0 and below 1 (a share of the run)")
        if not 0 <= final <= 1:
            raise ValueError(f"final={final}: must lie in 0 .. 1")
        self.decay = decay
        self.warmup = warmup
        self.final = final

    def __call__(self, progress: float) -> float:
        """The factor when the share `progress` (0 .. 1) of the run is done."""
        if progress < self.warmup:
            return progress / self.warmup
        if self.decay == "constant":
            return 1.0
        share = min((progress - self.warmup) / (1 - self.warmup), 1.0)
        falling = 1 - share if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * share))
        return self.final + (1 - self.final) * falling
