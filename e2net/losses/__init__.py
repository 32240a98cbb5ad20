"""Losses: terms as pure functions, and the criterion that weighs and adds them."""

from e2net.losses.criterion import TERMS, Criterion
from e2net.losses.schedule import Schedule

__all__ = ["TERMS", "Criterion", "Schedule"]
