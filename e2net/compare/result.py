"""What a comparison has found, as the writers of reports get it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from e2net.compare.corruptions import Corrupted
from e2net.compare.cost import Cost
from e2net.compare.gallery import Example
from e2net.compare.runs import Variant, sign
from e2net.compare.statistics import Difference
from e2net.tasks.base import Task


@dataclass
class Comparison:
    """Everything that a report says.

    Attributes:
        variants: at least two; the others are compared to the first.
        sets: names of the test sets.
        scores: names of the scores.
        score: the one that charts and pictures are about.
        task: of all variants.
        differing: flattened key of the configs to each variant's value.
        differences: {test set: {position of a variant: {score: difference to the first}}}; only scores that are means
            over images.
        corruptions: {test set: scores of each variant on corrupted pictures}, empty where not all have them.
        costs: of each variant, empty where they were not measured.
        machine: what they were measured on.
        examples: images on which two variants disagree.
        warnings: what makes the comparison less fair or complete than it might be.
        failures: runs that are missing because they failed.
        resamples, seed: of the bootstrap.
        written: when.
    """

    variants: list[Variant]
    sets: list[str]
    scores: list[str]
    score: str
    task: Task
    differing: dict[str, list[Any]]
    differences: dict[str, dict[int, dict[str, Difference]]]
    resamples: int
    seed: int
    corruptions: dict[str, list[Corrupted]] = field(default_factory=dict)
    costs: list[Cost] = field(default_factory=list)
    machine: str = ""
    examples: list[Example] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    written: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))

    def sign(self, score: str) -> int:
        """1 if more of a score is better, -1 if less is."""
        return sign(self.task, score)

    def images(self, name: str) -> list[str]:
        """Stems of a test set's scored images."""
        return list(self.variants[0].runs[0].images[name])
