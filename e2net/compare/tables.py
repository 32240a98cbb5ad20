"""The tables of a report, the same for HTML and Markdown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from e2net.compare.result import Comparison
from e2net.compare.statistics import LEVEL, Difference, mean_and_deviation
from e2net.page.tables import Cell, Table


def arrow(score: str, sign: int) -> str:
    """The score's name with the direction of better."""
    return f"{score}\N{NO-BREAK SPACE}{'↓' if sign < 0 else '↑'}"


def fraction(value: float) -> str:
    """Three digits without a leading zero, as papers have it."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def signed(value: float) -> str:
    """The same with a sign; a minus sign, not a hyphen."""
    text = fraction(abs(value))
    return ("+" if value > 0 else "−" if value < 0 else "±") + text if text.strip(".0") else "±.000"


def p_value(p: float, resamples: int) -> str:
    """As a number, or as below what so many draws can tell."""
    least = 2 / (resamples + 1)
    if p <= least * 1.001:
        step = 10.0 ** math.floor(math.log10(least))
        return f"< {(math.floor(least / step) + 1) * step:.1g}"  # the next number of one digit
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def differing_table(found: Comparison) -> Table:
    """What differs between the configs, seeds apart."""
    table = Table("", ["setting", *(v.name for v in found.variants)], numeric=False)
    for key, values in found.differing.items():
        table.rows.append([Cell(key, code=True), *(Cell(_setting(value), code=True) for value in values)])
    return table


def _setting(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def score_table(found: Comparison, name: str) -> Table:
    """A row a variant, a column a score."""
    n = len(found.images(name))
    table = Table(name, ["variant", *(arrow(s, found.sign(s)) for s in found.scores)], note=f"{n} images.")
    rows = [[mean_and_deviation(v.values(name, s)) for s in found.scores] for v in found.variants]
    best = [max(row[i][0] * found.sign(s) for row in rows) for i, s in enumerate(found.scores)]
    for position, (variant, row) in enumerate(zip(found.variants, rows, strict=True)):
        cells = [Cell(variant.name, variant=position)]
        for i, (score, (mean, deviation)) in enumerate(zip(found.scores, row, strict=True)):
            minor = "" if deviation is None else f"± {fraction(deviation)}"
            cells.append(Cell(fraction(mean), mean, best=mean * found.sign(score) == best[i], minor=minor))
        table.rows.append(cells)
    if any(len(v.runs) > 1 for v in found.variants):
        table.note += " Mean ± standard deviation over seeds; bold: best of the column."
    else:
        table.note += " One seed each, so nothing is known about what chance does; bold: best of the column."
    return table


def difference_table(found: Comparison, name: str, other: int, pictures: Mapping[str, Markup]) -> Table:
    """A row a score: both variants, their difference, its interval and p-value."""
    first, second = found.variants[0], found.variants[other]
    head = ["score", first.name, second.name, "difference", "95 % interval", *([""] if pictures else []), "p"]
    table = Table(f"{name}: {second.name} against {first.name}", head)
    for score, d in found.differences[name][other].items():
        means = [mean_and_deviation(v.values(name, score))[0] for v in (first, second)]
        picture = [Cell("", d.mean, picture=pictures[score])] if pictures else []
        table.rows.append(
            [
                Cell(arrow(score, found.sign(score))),
                *(Cell(fraction(m), m) for m in means),
                Cell(signed(d.mean), d.mean, best=is_significant(d)),
                Cell(f"{signed(d.low)} to {signed(d.high)}", d.low),
                *picture,
                Cell(p_value(d.p, found.resamples), d.p),
            ]
        )
    left_out = [s for s in found.scores if s not in found.differences[name][other]]
    if left_out:
        what = " and ".join(filter(None, (", ".join(left_out[:-1]), left_out[-1])))
        table.note = f"{what}: no mean over all images (of a whole set, or an image has none), so not in this table."
    return table


def corruption_table(found: Comparison, name: str) -> Table:
    """A row a variant: its score on clean and on corrupted pictures, and on those of each kind."""
    score, ones, way = found.score, found.corruptions[name], found.sign(found.score)
    table = Table(name, ["variant", "clean", "corrupted", "relative drop", *ones[0].kinds])
    for position, (variant, one) in enumerate(zip(found.variants, ones, strict=True)):
        kinds = [sum(values) / len(values) for values in one.kinds.values()]
        means = [one.clean, one.mean, *kinds]
        rivals = [[o.clean, o.mean, *(sum(v) / len(v) for v in o.kinds.values())] for o in ones]
        best = [mean * way == max(rival[i] * way for rival in rivals) for i, mean in enumerate(means)]
        cells = [Cell(fraction(mean), mean, best=won) for mean, won in zip(means, best, strict=True)]
        drop = Cell("–" if math.isnan(one.drop) else f"{100 * one.drop:.1f} %".replace("-", "−"), one.drop)
        table.rows.append([Cell(variant.name, variant=position), *cells[:2], drop, *cells[2:]])
    table.note = (
        f"{arrow(score, way)}, each column the mean over all strengths (corrupted: and kinds), averaged over seeds; "
        "the relative drop is by which part of the clean score that is worse. Bold: best of the column."
    )
    return table


def is_significant(difference: Difference) -> bool:
    """Whether the 95 % interval leaves zero out, and there are images enough to say so."""
    return (difference.low > 0 or difference.high < 0) and difference.p < 1 - LEVEL


def verdict(found: Comparison, name: str, other: int) -> tuple[str, str]:
    """A sentence on a test set, and a word for its outcome: better, worse or even."""
    first, second = found.variants[0].name, found.variants[other].name
    d = found.differences[name][other].get(found.score)
    if d is None:
        return f"{found.score} is no mean over all images; see the table.", "even"
    numbers = f"95 % interval {signed(d.low)} to {signed(d.high)}, p {_equals(p_value(d.p, found.resamples))}"
    if not is_significant(d):
        return f"No difference between {second} and {first} can be told on these images ({numbers}).", "even"
    won = d.mean * found.sign(found.score) > 0
    return f"{second} is {'better' if won else 'worse'} than {first} ({numbers}).", "better" if won else "worse"


def _equals(text: str) -> str:
    return text if text.startswith("<") else f"= {text}"


def cost_table(found: Comparison) -> Table:
    """A row a variant."""
    head = [
        "variant", "parameters", "trained", "input", "tokens", "GFLOPs", "training step", "images/s",
        "training memory", "inference memory",
    ]  # fmt: skip
    table = Table("", head)
    for position, (variant, c) in enumerate(zip(found.variants, found.costs, strict=True)):
        table.rows.append(
            [
                Cell(variant.name, variant=position),
                Cell(_millions(c.parameters), c.parameters),
                Cell(_millions(c.trained), c.trained),
                Cell(f"{c.size[0]} × {c.size[1]}", c.size[0] * c.size[1]),
                Cell(f"{c.tokens[0]} × {c.tokens[1]}", c.tokens[0] * c.tokens[1]),
                Cell(_three(c.flops / 1e9), c.flops),
                Cell(f"{_three(c.train_step * 1000)} ms", c.train_step),
                Cell(_three(c.images_per_second), c.images_per_second),
                Cell(_bytes(c.train_memory), c.train_memory),
                Cell(_bytes(c.predict_memory), c.predict_memory),
            ]
        )
    where = (
        "what tensors take on the GPU"
        if "GPU" in found.machine or "NVIDIA" in found.machine
        else "how far the process's resident memory grew over what it was before the model; good to about a third"
    )
    batches = sorted({c.batch for c in found.costs})
    table.note = (
        f"Measured on {found.machine}, all variants in turns in one process; times are medians of the network alone, "
        f"with batches of {' and '.join(map(str, batches))} images in memory. GFLOPs: one image's forward pass, "
        f"multiplication and addition counted as two. Memory: at the peak of a step, {where}."
    )
    return table


def _millions(count: int) -> str:
    return f"{_three(count / 1e6)} M"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _bytes(count: int | None) -> str:
    if count is None:
        return "–"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def run_table(found: Comparison) -> Table:
    """A row a run: where it lies and what it scored."""
    head = [
        "variant",
        "seed",
        *(f"{name} {arrow(found.score, found.sign(found.score))}" for name in found.sets),
        "folder",
    ]
    table = Table("", head)
    for position, variant in enumerate(found.variants):
        for run in variant.runs:
            values = [run.document["scores"][name][found.score] for name in found.sets]
            table.rows.append(
                [
                    Cell(variant.name, variant=position),
                    Cell(str(run.seed), run.seed),
                    *(Cell(fraction(value), value) for value in values),
                    Cell(str(run.folder), code=True),
                ]
            )
    return table


def method(found: Comparison) -> list[str]:
    """How the numbers came about."""
    protocol = ", ".join(f"{k}: {v}" for k, v in found.variants[0].runs[0].document["protocol"].items())
    return [
        "Differences: each image's score is averaged over a variant's seeds; the difference of the two averages is "
        f"taken image by image, and images are drawn with replacement {found.resamples} times (seed {found.seed}), the "
        "same for both variants. The interval holds the middle 95 % of the mean differences (percentile bootstrap); p "
        "is twice the smaller share of draws on either side of zero, plus one in numerator and denominator, and of n "
        "images at least 2^(1 - n): fewer than six tell no difference. Both speak "
        "of other images of this kind, for these trained models; what other seeds would give is seen in the ± of the "
        "score table. With many scores, sets and variants some p fall below .05 by chance: nothing is corrected.",
        f"Scores are those of each run's own test after training (of its best checkpoint), protocol {protocol}.",
        "Maps in the gallery are those of each variant's first seed, computed anew from its checkpoint.",
    ]


def title(names: Sequence[str]) -> str:
    """Of the report."""
    return " against ".join(names) if len(names) == 2 else f"{len(names)} variants: {', '.join(names)}"
