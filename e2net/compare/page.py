"""The report as one HTML file: nothing in it is fetched from anywhere. The HTML is in ``template/``."""

import math
from pathlib import Path
from typing import Any

from markupsafe import Markup

from e2net.compare import tables
from e2net.compare.gallery import Example
from e2net.compare.result import Comparison
from e2net.compare.statistics import mean_and_deviation
from e2net.page import charts
from e2net.page.render import colour, render

_TEMPLATE = Path(__file__).parent / "template"


def page(found: Comparison) -> str:
    """The whole file. Whatever a run brings along is escaped; only charts are markup already."""
    values = dict(
        found=found,
        title=tables.title([v.name for v in found.variants]),
        facts=_facts(found),
        several=any(len(v.runs) > 1 for v in found.variants),
        results=[_result(found, name, i) for name in found.sets for i in range(1, len(found.variants))],
        differing=tables.differing_table(found),
        scores=[_scores(found, name) for name in found.sets],
        corruptions=[_corruptions(found, name) for name in found.corruptions],
        costs=tables.cost_table(found) if found.costs else None,
        cost_charts=_cost_charts(found) if found.costs else [],
        curves=_curves(found),
        gallery=_gallery(found),
        runs=tables.run_table(found),
        method=tables.method(found),
    )
    return render(_TEMPLATE, values, {"signed": tables.signed, "fraction": tables.fraction})


def _facts(found: Comparison) -> str:
    seeds = sorted({seed for v in found.variants for seed in v.seeds})
    images = sum(len(found.images(name)) for name in found.sets)
    return (
        f"{_count(sum(len(v.runs) for v in found.variants), 'run')}, {_count(len(seeds), 'seed')} "
        f"({', '.join(map(str, seeds))}), {_count(images, 'test image')} in {_count(len(found.sets), 'set')}"
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _result(found: Comparison, name: str, other: int) -> dict[str, Any]:
    sentence, outcome = tables.verdict(found, name, other)
    means = [mean_and_deviation(found.variants[i].values(name, found.score))[0] for i in (0, other)]
    difference = found.differences[name][other].get(found.score)
    change = difference.mean if difference else means[1] - means[0]
    return {"name": name, "other": other, "sentence": sentence, "outcome": outcome, "means": means, "change": change}


def _scores(found: Comparison, name: str) -> dict[str, Any]:
    pairs = [_pair(found, name, other) for other in range(1, len(found.variants))]
    return {"name": name, "table": tables.score_table(found, name), "pairs": pairs}


def _pair(found: Comparison, name: str, other: int) -> dict[str, Any]:
    one = found.differences[name][other]
    reach = max([abs(edge) for d in one.values() for edge in (d.low, d.high)], default=0) or 1
    pictures = {
        s: charts.interval(d.low, d.mean, d.high, reach, f"{s}: {tables.signed(d.mean)}") for s, d in one.items()
    }
    first, second = found.variants[0], found.variants[other]
    stems = found.images(name)
    change = second.per_image(name, found.score, stems) - first.per_image(name, found.score, stems)
    above = int((change > 0).sum())
    return {
        "first": first.name,
        "second": second.name,
        "table": tables.difference_table(found, name, other, pictures),
        "words": f"{second.name} has the higher {found.score} on {above} of {len(stems)} images.",
        "chart": charts.differences(
            [(float(one), stem) for one, stem in zip(change, stems, strict=True) if not math.isnan(one)],
            (0, other),
            f"{found.score} difference",
            f"{found.score} of {second.name} minus {first.name} for each of {len(stems)} images of {name}, sorted",
        ),
    }


def _corruptions(found: Comparison, name: str) -> dict[str, Any]:
    ones = found.corruptions[name]
    drawn = []
    for kind in ones[0].kinds:
        lines = [
            charts.Line(i, f"{v.name}, {kind}", list(enumerate([one.clean, *one.kinds[kind]])))
            for i, (v, one) in enumerate(zip(found.variants, ones, strict=True))
        ]
        about = f"{found.score} on {name} by strength of {kind}, a line each variant"
        drawn.append((kind, charts.line_chart(lines, f"strength of {kind} (0: clean)", found.score, about)))
    return {"table": tables.corruption_table(found, name), "charts": drawn}


def _cost_charts(found: Comparison) -> list[Markup]:
    columns = (
        ("GFLOPs an image", [c.flops / 1e9 for c in found.costs]),
        ("training step, ms", [c.train_step * 1000 for c in found.costs]),
    )
    drawn = []
    for name in found.sets:
        spread = [mean_and_deviation(v.values(name, found.score)) for v in found.variants]
        for label, values in columns:
            points = [
                charts.Point(
                    i, v.name, x, mean, deviation or 0.0, f"{v.name}: {found.score} {mean:.3f}, {label} {x:.4g}"
                )
                for i, (v, x, (mean, deviation)) in enumerate(zip(found.variants, values, spread, strict=True))
            ]
            about = f"{found.score} on {name}"
            drawn.append(charts.scatter(points, label, about, f"{about} against {label}"))
    return drawn


def _curves(found: Comparison) -> list[Markup]:
    curves = [(i, v, run, run.curves()) for i, v in enumerate(found.variants) for run in v.runs]
    drawn = []
    for key, label in ((f"val/{found.score}", f"validation {found.score}"), ("train/loss", "training loss")):
        lines = [charts.Line(i, f"{v.name}, seed {run.seed}", c.get(key, [])) for i, v, run, c in curves]
        drawn.append(charts.line_chart(lines, "epoch", label, f"{label} by epoch, a line each run"))
    return [chart for chart in drawn if chart]


def _gallery(found: Comparison) -> dict[str, list[dict[str, Any]]]:
    """The examples with pictures under the heading of their test set and pair."""
    shots: dict[str, list[dict[str, Any]]] = {}
    for e in found.examples:
        if e.pictures:
            heading = e.test_set if len(found.variants) == 2 else f"{e.test_set}: {found.variants[e.second].name}"
            shots.setdefault(heading, []).append(_shot(found, e))
    return shots


def _shot(found: Comparison, example: Example) -> dict[str, Any]:
    image, target, *maps = example.pictures
    what = found.task.target_name
    shown = [
        {"picture": image, "alt": f"image {example.stem}", "caption": "image", "colour": ""},
        {"picture": target, "alt": f"{what} of {example.stem}", "caption": what, "colour": ""},
    ]
    for i, picture, score in zip((example.first, example.second), maps, example.scores, strict=True):
        name = found.variants[i].name
        alt = f"map of {example.stem} by {name}, {found.score} {score:.3f}"
        caption = f"{name}, {found.score} {tables.fraction(score)}"
        shown.append({"picture": picture, "alt": alt, "caption": caption, "colour": colour(i)})
    several = any(len(found.variants[i].runs) > 1 for i in (example.first, example.second))
    return {"stem": example.stem, "means": example.means, "several": several, "shown": shown}
