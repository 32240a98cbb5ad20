"""Charts as inline SVG: colours come from the page's style sheet, values from titles that show on hovering."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from e2net.page.render import colour

WIDTH, HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 16, 16, 52
# Different to whoever sees no colours as well.
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "1 3")


@dataclass(frozen=True)
class Line:
    """Values of one run over time: the variant's position, a title, and points (x, y)."""

    variant: int
    title: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Point:
    """A variant in a plane: its position, name, (x, y), half the height of its error bar, and a title."""

    variant: int
    name: str
    x: float
    y: float
    spread: float
    title: str


def ticks(low: float, high: float, count: int = 5, least: float = 0) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``, at least ``least`` apart."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = max(span / count, least)
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


class _Plane:
    """Axes with ticks and grid, and the mapping into them; the x axis is logarithmic over more than a decade."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], label_x: str, label_y: str, log_x: bool = False):
        self.counted = all(float(v).is_integer() for v in xs)
        self.log = log_x and min(xs) > 0 and max(xs) / min(xs) > 10
        x = [math.log10(v) if self.log else v for v in xs]
        self.x0, self.x1 = _widened(min(x), max(x), 0.12 if log_x else 0)
        self.y0, self.y1 = _widened(min(ys), max(ys), 0.08)
        self.parts: list[str] = []
        inner_bottom = HEIGHT - _BOTTOM
        for value in ticks(self.y0, self.y1):
            y = self.y(value)
            self.parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>'
            )
        marks = [10.0**k for k in range(math.ceil(self.x0), math.floor(self.x1) + 1)] if self.log else []
        for value in marks if len(marks) > 1 else self._marks():
            x_ = self.x(value)
            self.parts.append(
                f'<line class="tick" x1="{x_:.1f}" x2="{x_:.1f}" y1="{inner_bottom}" y2="{inner_bottom + 4}"/>'
                f'<text x="{x_:.1f}" y="{inner_bottom + 20}" text-anchor="middle">{_number(value)}</text>'
            )
        self.parts.append(
            f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{inner_bottom}" y2="{inner_bottom}"/>'
            f'<text class="label" x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
            f"{escape(label_x)}</text>"
            f'<text class="label" transform="translate(16 {(_TOP + inner_bottom) / 2}) rotate(-90)" '
            f'text-anchor="middle">{escape(label_y)}</text>'
        )

    def _marks(self) -> list[float]:
        if self.log:
            return [10**v for v in ticks(self.x0, self.x1, 4)]
        return ticks(self.x0, self.x1, least=1 if self.counted else 0)

    def x(self, value: float) -> float:
        place = math.log10(value) if self.log else value
        return _LEFT + (place - self.x0) / (self.x1 - self.x0) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - _TOP - _BOTTOM)


def _widened(low: float, high: float, by: float) -> tuple[float, float]:
    if high - low < 1e-12:
        room = abs(high) * 0.1 or 0.5
        return low - room, high + room
    return low - by * (high - low), high + by * (high - low)


def _number(value: float) -> str:
    text = f"{value:.6g}" if abs(value) < 1e5 else f"{value:.1e}"
    return text.replace("-", "−")


def _svg(parts: Sequence[str], about: str, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """Parts are markup already: whatever comes from outside is escaped where a part is made."""
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(about)}">{"".join(parts)}</svg>')


def line_chart(lines: Sequence[Line], label_x: str, label_y: str, about: str) -> Markup:
    """One line a run; runs of one variant share colour and dashes. Points carry their values as titles."""
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup()
    xs, ys = zip(*(point for line in lines for point in line.points), strict=True)
    plane = _Plane(xs, ys, label_x, label_y)
    for line in lines:
        places = [(plane.x(x), plane.y(y), x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
        dash = f' stroke-dasharray="{_DASHES[line.variant % len(_DASHES)]}"' if line.variant else ""
        plane.parts.append(
            f'<g class="{colour(line.variant)}"><polyline points="{path}"{dash}>'
            f"<title>{escape(line.title)}</title></polyline>"
        )
        plane.parts += [
            f'<circle class="hover" cx="{x:.1f}" cy="{y:.1f}" r="3">'
            f"<title>{escape(line.title)}, {escape(label_x)} {_number(a)}: {_number(round(b, 4))}</title></circle>"
            for x, y, a, b in places
        ]
        plane.parts.append("</g>")
    return _svg(plane.parts, about)


def _marker(position: int, x: float, y: float) -> str:
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6.5"/>',
        f'<rect x="{x - 6:.1f}" y="{y - 6:.1f}" width="12" height="12"/>',
        f'<path d="M{x:.1f} {y - 8:.1f}l7.5 13h-15z"/>',
        f'<path d="M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8-8z"/>',
    )
    return shapes[position % len(shapes)]


def scatter(points: Sequence[Point], label_x: str, label_y: str, about: str) -> Markup:
    """A marker a variant, with its name beside it and an error bar; costs over more than a decade logarithmic."""
    if not points:
        return Markup()
    ys = [p.y + side * p.spread for p in points for side in (-1, 1)]
    plane = _Plane([p.x for p in points], ys, label_x, label_y, log_x=True)
    for p in points:
        x, y = plane.x(p.x), plane.y(p.y)
        right = x < WIDTH * 0.6
        bar = f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{plane.y(p.y - p.spread):.1f}" '
        bar += f'y2="{plane.y(p.y + p.spread):.1f}"/>'
        plane.parts.append(
            f'<g class="{colour(p.variant)} marker"><title>{escape(p.title)}</title>{bar if p.spread else ""}'
            f'{_marker(p.variant, x, y)}<text class="name" x="{x + (12 if right else -12):.1f}" y="{y + 4:.1f}" '
            f'text-anchor="{"start" if right else "end"}">{escape(_short(p.name))}</text></g>'
        )
    return _svg(plane.parts, about)


def _short(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"


def differences(values: Sequence[tuple[float, str]], better: tuple[int, int], label: str, about: str) -> Markup:
    """A bar an image, sorted: how much the second variant is above (its colour) or below the first.

    Args:
        values: difference and name of each image.
        better: positions of the variants: the one that bars below zero speak for, and the one of those above.
        label: of the y axis.
        about: for those who cannot see it.
    """
    ordered = sorted(values)
    if not ordered:
        return Markup()
    plane = _Plane([0, len(ordered)], [0, *(v for v, _ in ordered)], "images, by difference", label)
    step = (WIDTH - _LEFT - _RIGHT) / len(ordered)
    zero = plane.y(0)
    for i, (value, name) in enumerate(ordered):
        top, bottom = sorted((plane.y(value), zero))
        plane.parts.append(
            f'<rect class="{colour(better[value > 0])}" x="{_LEFT + i * step:.2f}" y="{top:.1f}" '
            f'width="{max(step * 0.9, 0.4):.2f}" height="{max(bottom - top, 0.3):.1f}">'
            f"<title>{escape(name)}: {value:+.3f}</title></rect>"
        )
    plane.parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{zero:.1f}" y2="{zero:.1f}"/>')
    return _svg(plane.parts, about)


def interval(low: float, middle: float, high: float, reach: float, about: str) -> Markup:
    """A difference and its interval on a line from ``-reach`` to ``reach``, zero in the middle."""
    width, height = 150, 22

    def place(value: float) -> float:
        return width / 2 + max(-1.0, min(1.0, value / reach)) * (width / 2 - 6)

    parts = [
        f'<line class="zero" x1="{width / 2}" x2="{width / 2}" y1="1" y2="{height - 1}"/>',
        f'<line class="range" x1="{place(low):.1f}" x2="{place(high):.1f}" y1="{height / 2}" y2="{height / 2}"/>',
        f'<circle class="dot" cx="{place(middle):.1f}" cy="{height / 2}" r="4.5"/>',
    ]
    return _svg(parts, about, width, height)


def span(low: float, middle: float, high: float, scale: tuple[float, float, float], about: str) -> Markup:
    """A value and its interval on a line.

    Args:
        low, middle, high: the value between the ends of its interval, NaN where it has none.
        scale: where the line begins, a value that is marked on it, and where it ends; what lies beyond is cut off.
        about: for those who cannot see it.
    """
    width, height = 150, 22
    start, mark, end = scale

    def place(value: float) -> float:
        return 6 + max(0.0, min(1.0, (value - start) / ((end - start) or 1))) * (width - 12)

    parts = [f'<line class="zero" x1="{place(mark):.1f}" x2="{place(mark):.1f}" y1="1" y2="{height - 1}"/>']
    if not math.isnan(low):
        ends = f'x1="{place(low):.1f}" x2="{place(high):.1f}"'
        parts.append(f'<line class="range" {ends} y1="{height / 2}" y2="{height / 2}"/>')
    parts.append(f'<circle class="dot" cx="{place(middle):.1f}" cy="{height / 2}" r="4.5"/>')
    return _svg(parts, about, width, height)


def shares(counts: Sequence[tuple[str, int]]) -> Markup:
    """A bar in pieces as long as their counts, each in the colour of its position; together at least 1."""
    width, height = 150, 14
    whole = sum(count for _, count in counts)
    parts, left = [], 0.0
    for position, (name, count) in enumerate(counts):
        if count:
            wide = width * count / whole
            title = f"<title>{escape(name)}: {count} of {whole}</title>"
            place = f'x="{left:.2f}" y="0" width="{wide:.2f}" height="{height}"'
            parts.append(f'<rect class="{colour(position)}" {place}>{title}</rect>')
            left += wide
    about = ", ".join(f"{name} {count}" for name, count in counts if count)
    return _svg(parts, about, width, height)
