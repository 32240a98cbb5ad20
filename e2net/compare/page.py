"""The report as one HTML file: nothing in it is fetched from anywhere."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import e2net
from e2net.compare import charts, tables
from e2net.compare.charts import colour
from e2net.compare.gallery import Example, Picture
from e2net.compare.result import Comparison
from e2net.compare.statistics import mean_and_deviation
from e2net.compare.tables import Cell, Table

_TEMPLATE = Path(__file__).parent / "template"


def page(found: Comparison) -> str:
    """The whole file."""
    body = [_head(found), *_results(found), *_differing(found), *_scores(found), *_costs(found)]
    body += [*_training(found), *_gallery(found), *_runs(found)]
    text = (_TEMPLATE / "page.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": escape(tables.title([v.name for v in found.variants])),
        "STYLE": (_TEMPLATE / "style.css").read_text(encoding="utf-8"),
        "SCRIPT": (_TEMPLATE / "script.js").read_text(encoding="utf-8"),
        "BODY": "\n".join(body),
    }
    # The body last, so that no name in it is taken for a place to fill.
    for key, content in parts.items():
        text = text.replace(f"<!--{key}-->", content, 1)
    return text


def _head(found: Comparison) -> str:
    names = [f'<span class="chip {colour(i)}">{escape(v.name)}</span>' for i, v in enumerate(found.variants)]
    seeds = sorted({seed for v in found.variants for seed in v.seeds})
    images = sum(len(found.images(name)) for name in found.sets)
    facts = (
        f"{_count(sum(len(v.runs) for v in found.variants), 'run')}, {_count(len(seeds), 'seed')} "
        f"({', '.join(map(str, seeds))}), {_count(images, 'test image')} in {_count(len(found.sets), 'set')}"
    )
    joined = " against ".join(names) if len(names) == 2 else " ".join(names)
    notes = [f'<p class="note bad"><strong>Failed:</strong> {escape(line)}</p>' for line in found.failures]
    notes += [f'<p class="note"><strong>Note:</strong> {escape(line)}</p>' for line in found.warnings]
    return (
        f'<header><p class="over">e2net {escape(e2net.__version__)} comparison</p><h1>{joined}</h1>'
        f'<p class="facts">{escape(facts)}. {escape(found.written)}</p>{"".join(notes)}</header>'
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _section(name: str, content: str, lead: str = "") -> str:
    anchor = name.lower().replace(" ", "-")
    intro = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(name)}</h2>{intro}{content}</section>'


def _results(found: Comparison) -> list[str]:
    cards = []
    for name in found.sets:
        for other in range(1, len(found.variants)):
            sentence, outcome = tables.verdict(found, name, other)
            means = [mean_and_deviation(found.variants[i].values(name, found.score))[0] for i in (0, other)]
            difference = found.differences[name][other].get(found.score)
            change = difference.mean if difference else means[1] - means[0]
            cards.append(
                f'<article class="card {outcome}"><h3>{escape(name)}</h3>'
                f'<p class="big">{tables.signed(change)} <small>{escape(found.score)}</small></p>'
                f'<p class="pair"><span class="{colour(0)}">{tables.fraction(means[0])}</span> → '
                f'<span class="{colour(other)}">{tables.fraction(means[1])}</span></p>'
                f"<p>{escape(sentence)}</p></article>"
            )
    return [_section("Result", f'<div class="cards">{"".join(cards)}</div>')]


def _differing(found: Comparison) -> list[str]:
    if not found.differing:
        content = "<p>Nothing but the seeds: the variants are runs of one config.</p>"
        return [_section("What differs", content)]
    lead = "All settings in which the configs are not the same, seeds apart. Everything else is equal."
    return [_section("What differs", _table(tables.differing_table(found)), lead)]


def _scores(found: Comparison) -> list[str]:
    parts = []
    for name in found.sets:
        parts.append(f"<h3>{escape(name)}</h3>{_table(tables.score_table(found, name))}")
        for other in range(1, len(found.variants)):
            one = found.differences[name][other]
            reach = max([abs(edge) for d in one.values() for edge in (d.low, d.high)], default=0) or 1
            pictures = {
                s: charts.interval(d.low, d.mean, d.high, reach, f"{s}: {tables.signed(d.mean)}")
                for s, d in one.items()
            }
            first, second = found.variants[0], found.variants[other]
            stems = found.images(name)
            change = second.per_image(name, found.score, stems) - first.per_image(name, found.score, stems)
            drawn = charts.differences(
                list(zip(map(float, change), stems, strict=True)),
                (0, other),
                f"{found.score} difference",
                f"{found.score} of {second.name} minus {first.name} for each of {len(stems)} images of {name}, sorted",
            )
            above = int((change > 0).sum())
            words = f"{second.name} has the higher {found.score} on {above} of {len(stems)} images."
            table = _table(tables.difference_table(found, name, other, pictures))
            parts.append(
                f"<h4>{escape(second.name)} minus {escape(first.name)}</h4>"
                f'<div class="beside"><div>{table}</div><figure class="chart">{drawn}'
                f"<figcaption>{escape(words)}</figcaption></figure></div>"
            )
    return [_section("Scores", "".join(parts))]


def _costs(found: Comparison) -> list[str]:
    if not found.costs:
        return []
    figures = []
    columns = (
        ("GFLOPs an image", [c.flops / 1e9 for c in found.costs]),
        ("training step, ms", [c.train_step * 1000 for c in found.costs]),
    )
    for name in found.sets:
        spread = [mean_and_deviation(v.values(name, found.score)) for v in found.variants]
        for label, values in columns:
            points = [
                charts.Point(
                    i, v.name, values[i], spread[i][0], spread[i][1] or 0.0,
                    f"{v.name}: {found.score} {spread[i][0]:.3f}, {label} {values[i]:.4g}",
                )
                for i, v in enumerate(found.variants)
            ]  # fmt: skip
            drawn = charts.scatter(
                points, label, f"{found.score} on {name}", f"{found.score} on {name} against {label}"
            )
            figures.append(f'<figure class="chart">{drawn}</figure>')
    plots = f'<div class="charts">{"".join(figures)}</div>'
    bars = " Bars: ± standard deviation over seeds." if any(len(v.runs) > 1 for v in found.variants) else ""
    return [
        _section("Cost", _table(tables.cost_table(found))),
        _section("Score against cost", plots, f"Up and to the left is better.{bars}"),
    ]


def _training(found: Comparison) -> list[str]:
    curves = [(i, v, run, run.curves()) for i, v in enumerate(found.variants) for run in v.runs]
    figures = []
    for key, label in ((f"val/{found.score}", f"validation {found.score}"), ("train/loss", "training loss")):
        lines = [charts.Line(i, f"{v.name}, seed {run.seed}", c.get(key, [])) for i, v, run, c in curves]
        if drawn := charts.line_chart(lines, "epoch", label, f"{label} by epoch, a line each run"):
            figures.append(f'<figure class="chart">{drawn}</figure>')
    if not figures:
        return []
    content = f'{_legend(found)}<div class="charts">{"".join(figures)}</div>'
    return [_section("Training curves", content, "One line a run. Losses of different kinds cannot be compared.")]


def _legend(found: Comparison) -> str:
    names = [f'<span class="chip {colour(i)}">{escape(v.name)}</span>' for i, v in enumerate(found.variants)]
    return f'<p class="legend">{" ".join(names)}</p>'


def _gallery(found: Comparison) -> list[str]:
    if not any(e.pictures for e in found.examples):
        return []
    parts = []
    pairs = dict.fromkeys((e.test_set, e.first, e.second) for e in found.examples)
    for name, first, second in pairs:
        heading = name if len(found.variants) == 2 else f"{name}: {found.variants[second].name}"
        chosen = [e for e in found.examples if (e.test_set, e.first, e.second) == (name, first, second)]
        parts.append(f"<h3>{escape(heading)}</h3>")
        parts.append(f'<div class="shots">{"".join(_shot(found, e) for e in chosen)}</div>')
    lead = (
        f"The images with the largest difference in {found.score}, averaged over seeds: gains first, then losses. Maps "
        "are those of the first seed."
    )
    return [_section("Where they disagree most", "".join(parts), lead)]


def _shot(found: Comparison, example: Example) -> str:
    pair = [found.variants[i] for i in (example.first, example.second)]
    change = example.means[1] - example.means[0]
    several = any(len(v.runs) > 1 for v in pair)
    captions = ["image", "mask"]
    alts = [f"image {example.stem}", f"mask of {example.stem}"]
    classes = ["", ""]
    for i, variant, shown in zip((example.first, example.second), pair, example.scores, strict=True):
        captions.append(f"{variant.name}, {found.score} {tables.fraction(shown)}")
        alts.append(f"map of {example.stem} by {variant.name}, {found.score} {shown:.3f}")
        classes.append(colour(i))
    figures = "".join(
        f'<figure class="{c}">{_image(p, alt)}<figcaption>{escape(caption)}</figcaption></figure>'
        for p, alt, caption, c in zip(example.pictures, alts, captions, classes, strict=True)
    )
    over = " on average over seeds" if several else ""
    return (
        f'<article class="shot"><h4>{escape(example.stem)}</h4><p>{found.score} {tables.fraction(example.means[0])} → '
        f"{tables.fraction(example.means[1])} ({tables.signed(change)}{over})</p>"
        f'<div class="strip">{figures}</div></article>'
    )


def _image(picture: Picture, alt: str) -> str:
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="{picture.uri}" alt="{escape(alt)}" {size} decoding="async">'


def _runs(found: Comparison) -> list[str]:
    lines = "".join(f"<p>{escape(line)}</p>" for line in tables.method(found))
    return [_section("Runs", _table(tables.run_table(found))), _section("Method", f'<div class="prose">{lines}</div>')]


def _table(table: Table) -> str:
    kind = "numbers" if table.numeric else "settings"
    head = "".join(_heading(text) for text in table.head)
    rows = "".join(f"<tr>{_row(row)}</tr>" for row in table.rows)
    label = escape(table.title or "table")
    note = f'<p class="caption">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table class="{kind}">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def _heading(text: str) -> str:
    return f'<th scope="col"><button type="button">{escape(text)}</button></th>' if text else '<th scope="col"></th>'


def _row(row: Sequence[Cell]) -> str:
    cells = []
    for i, cell in enumerate(row):
        tag = 'th scope="row"' if i == 0 else "td"
        value = "" if cell.value is None else f' data-value="{cell.value!r}"'
        text = cell.picture or escape(cell.text)
        if cell.code:
            text = f"<code>{text}</code>"
        if cell.variant is not None:
            text = f'<span class="chip {colour(cell.variant)}">{text}</span>'
        if cell.best:
            text = f"<strong>{text}</strong>"
        if cell.minor:
            text += f' <span class="minor">{escape(cell.minor)}</span>'
        cells.append(f"<{tag}{value}>{text}</{tag[:2]}>")
    return "".join(cells)
