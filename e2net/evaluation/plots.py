"""Figures of a score report: curves, and sheets of the images that went worst and best."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from e2net.drawing import contact_sheet
from e2net.formats import encoded
from e2net.metrics.calibration import Calibration

# The image where it is at hand, the target and the result, each (h, w, 3) uint8 RGB.
Pictures = Sequence[NDArray[np.uint8]]

EXTREMES = 12
# Every picture of a sheet is fitted into a box of this size, pixels.
_BOX_WIDTH, _BOX_HEIGHT, _CAPTION = 160, 120, 18
_COLUMNS = 3
_WHITE = (255, 255, 255)


def curve_figure(curves: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> bytes:
    """Precision over recall, and F over the threshold, one line a set.

    Args:
        curves: set to curve name ("F", "precision", "recall") to (256,) values, for thresholds 0..255.

    Returns:
        A PNG file.
    """
    figure = _figure(10, 4.5)
    left, right = figure.subplots(1, 2)
    for name, values in curves.items():
        # at threshold 256 nothing would be found; the first threshold that finds nothing is no point of the curve
        style = "--" if name.endswith("(binarised)") else "-"
        found = values["recall"] > 0
        left.plot(values["recall"][found], values["precision"][found], style, label=_as_it_is(name))
        right.plot(np.arange(256), values["F"], style, label=_as_it_is(name))
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    right.set(xlabel="threshold", ylabel="F-measure (β² = 0.3)", xlim=(0, 255), ylim=(0, 1.01))
    for axes in (left, right):
        _plain(axes)
    left.legend(frameon=False, loc="lower left")
    return _png(figure)


def calibration_figure(calibrations: Mapping[str, Calibration]) -> bytes:
    """The share of object pixels over the probability that maps gave them, and how many pixels there are of each.

    Args:
        calibrations: by the names of the sets.

    Returns:
        A PNG file.
    """
    figure = _figure(5.5, 6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], ":", color="grey", label="calibrated")
    for name, calibration in calibrations.items():
        pixels, probability, frequency = calibration.reliability
        some = pixels > 0
        (line,) = above.plot(
            probability[some], frequency[some], "o-", ms=4, label=f"{_as_it_is(name)}: ECE {calibration.error:.3f}"
        )
        above.axvline(calibration.threshold, color=line.get_color(), ls="--", lw=1)
        below.stairs(pixels / pixels.sum(), np.linspace(0, 1, len(pixels) + 1), color=line.get_color())
    above.set(ylabel="share of object", xlim=(0, 1), ylim=(0, 1.01))
    below.set(xlabel="probability in the map (dashed: threshold of the best F)", ylabel="share of pixels", yscale="log")
    for axes in (above, below):
        _plain(axes)
    above.legend(frameon=False, loc="upper left")
    return _png(figure)


def corruption_figure(curves: Mapping[str, Mapping[str, Sequence[float]]], score: str) -> bytes:
    """A score over the strength of corruptions: a panel a set, a line a kind, and their mean in black.

    Args:
        curves: set to kind to values, of the clean images first.
        score: its name.

    Returns:
        A PNG file.
    """
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = _figure(1.6 + 4.6 * columns, 4.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axes, (name, kinds) in zip(panels, curves.items(), strict=False):
        for (kind, values), marker in zip(kinds.items(), "os^vDPX*", strict=False):
            axes.plot(range(len(values)), values, marker=marker, markersize=4.5, linewidth=1.5, label=kind)
        mean = np.mean(list(kinds.values()), axis=0)
        axes.plot(range(len(mean)), mean, color="black", linewidth=3, label="mean")
        axes.set(title=_as_it_is(name), xlabel="strength (0: clean)", ylabel=_as_it_is(score))
        _plain(axes)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside right upper")
    return _png(figure)


def lines_figure(lines: Mapping[str, Sequence[tuple[float, float]]], x: str) -> bytes:
    """A panel for each line.

    Args:
        lines: by what they are of, (x, y) of each point.
        x: what the horizontal axes are.

    Returns:
        A PNG file.
    """
    columns = min(4, max(1, len(lines)))
    rows = -(-len(lines) // columns)
    figure = _figure(1 + 3.2 * columns, 3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axes, (name, points) in zip(panels, lines.items(), strict=False):
        axes.plot([point[0] for point in points], [point[1] for point in points], "o-", markersize=3.5, linewidth=1.5)
        axes.set(title=name, xlabel=x)
        axes.tick_params(labelbottom=True)  # also where another panel would be below it
        _plain(axes)
    for axes in panels[len(lines) :]:
        axes.set_visible(False)
    return _png(figure)


def _as_it_is(name: str) -> str:
    """A name for a figure: no formula where it has dollar signs, and in the legend though it begins with "_"."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, which needs no display."""
    # Only now: scoring begins without the half second that this takes to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def extremes_sheet(
    scored: Sequence[tuple[float, int, str]], pictures: Callable[[int], Pictures], by: str, falling: bool = False
) -> bytes:
    """The 12 worst images of a set, worst first, and below them the 12 best, best first.

    Each with its image (where there is one), target and result, and its name and score above. A set of fewer than 24
    images is halved.

    Args:
        scored: score, position and name of each image; at least one.
        pictures: reads what to show of an image, by its position.
        by: name of the score.
        falling: whether less of it is better.

    Returns:
        A PNG file.
    """
    order = sorted(scored, key=lambda one: (-one[0] if falling else one[0], *one[1:]))
    worst = order[: min(EXTREMES, (len(order) + 1) // 2)]
    best = order[: len(worst) - 1 : -1][:EXTREMES]
    parts = []
    for title, chosen in ((f"{len(worst)} worst by {by}", worst), (f"{len(best)} best by {by}", best)):
        if chosen:
            cells = [_cell(f"{name}  {by} {score:.3f}", pictures(position)) for score, position, name in chosen]
            sheet = contact_sheet(cells, _COLUMNS)
            parts += [_text(title, sheet.shape[1], 28, 0.6), sheet]
    width = max(part.shape[1] for part in parts)
    padded = [cv2.copyMakeBorder(p, 0, 0, 0, width - p.shape[1], cv2.BORDER_CONSTANT, value=_WHITE) for p in parts]
    return encoded(cv2.vconcat(padded))


def _cell(caption: str, pictures: Pictures) -> NDArray[Any]:
    line = cv2.hconcat([_fit(picture) for picture in pictures])
    return cv2.vconcat([_text(caption, line.shape[1], _CAPTION, 0.42), line])


def _fit(image: NDArray[Any]) -> NDArray[Any]:
    """Scaled into a box, in the middle of it, on light grey."""
    height, width = image.shape[:2]
    scale = min((_BOX_WIDTH - 4) / width, _BOX_HEIGHT / height)
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    box = np.full((_BOX_HEIGHT, _BOX_WIDTH, 3), 230, np.uint8)
    box[:, -4:] = 255
    top, left = (_BOX_HEIGHT - size[1]) // 2, (_BOX_WIDTH - 4 - size[0]) // 2
    box[top : top + size[1], left : left + size[0]] = small
    return box


def _text(text: str, width: int, height: int, scale: float) -> NDArray[np.uint8]:
    strip = np.full((height, width, 3), 255, np.uint8)
    plain = text.encode("ascii", "replace").decode()  # OpenCV's font has no other letters
    while plain and cv2.getTextSize(plain, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] > width - 6:
        plain = plain[1:]  # the score stands at the end
    origin = (2, height - round(height / 3))
    cv2.putText(strip, plain, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (30, 30, 30), 1, cv2.LINE_AA)
    return strip
