"""The page itself: Gradio's components around the functions of ``look``."""

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from markupsafe import Markup

import e2net
from e2net.demo.examples import Example
from e2net.demo.look import (
    SHOWN,
    Kept,
    Limits,
    Look,
    Model,
    Objects,
    archive,
    at,
    film_of,
    first_threshold,
    look,
    objects_of,
    overlay_of,
)
from e2net.demo.settings import DemoSettings
from e2net.page.pictures import shrunk
from e2net.predict.result import Kind, Prediction
from e2net.predict.settings import THRESHOLD

View = Literal["overlay", "map", "cutout", "features"]
_TITLES: dict[View, str] = {"overlay": "Overlay", "map": "Map", "cutout": "Cut-out", "features": "Features"}
_FILMED: tuple[View, ...] = ("overlay", "map")
# What is the same whatever the threshold.
_STILL: tuple[View, ...] = ("map", "features")
_STYLE = Path(__file__).parent / "page.css"
# How long a visitor who has gone is remembered, and files are kept, those that came and those of the page: seconds.
_FORGET, _FILES = 3600, 900
# The environment variable by which Gradio is told where its files are to be.
FILES = "GRADIO_TEMP_DIR"
# Fetches the file that was made for a visitor.
_FETCH = """(file) => {
  const link = document.createElement('a');
  link.href = file.url; link.download = file.orig_name; link.click();
}"""
# On a telephone results come below what was chosen.
_SCROLL = """() => { if (innerWidth < 700) setTimeout(() =>
  document.querySelector('#results')?.scrollIntoView({behavior: 'smooth'}), 100); }"""


class Panel:
    """What one model has on the page.

    Args:
        model: of a checkpoint.
        alone: whether there is no other.
    """

    def __init__(self, model: Model, alone: bool) -> None:
        self.model = model
        self.views: list[View] = ["overlay", "map"]
        self.views += ["cutout"] if model.objects else []
        self.views += ["features"] if model.features else []
        self._of = "" if alone else f" · {model.name}"
        self.pictures: dict[View, gr.Image] = {}
        self.films: dict[View, gr.Video] = {}

    def cell(self, view: View) -> None:
        """Makes the components of a view here."""
        label = _TITLES[view] + self._of
        self.pictures[view] = gr.Image(
            label=label, interactive=False, buttons=["fullscreen"], elem_classes=["view", f"view-{view}"]
        )
        if view in _FILMED:
            film: dict[str, Any] = {"interactive": False, "visible": False, "loop": True, "autoplay": True}
            self.films[view] = gr.Video(label=label, buttons=[], elem_classes=["view"], **film)

    def list_objects(self) -> None:
        """Makes the list of objects here; where the task has none, of what the map's colours mean."""
        self.objects = gr.HTML(elem_classes=["objects"])

    @property
    def parts(self) -> list[Any]:
        """All components, in the order of ``updates``."""
        return [*self.pictures.values(), *self.films.values(), self.objects]

    def updates(self, one: Look, k: int, threshold: float, moved: bool = False) -> list[Any]:
        """What the components show of a file.

        Args:
            one: of the file.
            k: this model's number.
            threshold: of objects.
            moved: only the threshold is another than before.
        """
        if moved and not self.model.objects:
            return [gr.skip()] * len(self.parts)
        found = [at(prediction, threshold) for prediction in one.predictions[k]]
        if one.rate is not None:
            pictures = [gr.update(value=None, visible=False) for _ in self.pictures]
            films = [self._film(found, view, one.rate, moved) for view in self.films]
            return [*pictures, *films, ""]
        objects = objects_of(found[0]) if self.model.objects else None
        drawn: dict[View, Callable[[], Any]] = {
            "overlay": partial(overlay_of, found[0], objects),
            "map": lambda: shrunk(found[0].shown(), SHOWN),
            "cutout": lambda: shrunk(found[0].cutout(), SHOWN),
            "features": lambda: one.features[k],
        }
        pictures = [
            gr.skip() if moved and view in _STILL else gr.update(value=drawn[view](), visible=True)
            for view in self.pictures
        ]
        films = [gr.skip() if moved else gr.update(value=None, visible=False) for _ in self.films]
        told = _legend(found[0], self._of) if objects is None else _table(found[0], objects, self._of)
        return [*pictures, *films, told]

    def _film(self, found: Sequence[Prediction], view: View, rate: float, moved: bool) -> Any:
        if moved and view in _STILL:
            return gr.skip()
        kind: Kind = "overlay" if view == "overlay" else "map"
        return gr.update(value=str(film_of(found, kind, rate, _new_folder() / f"{view}.webm")), visible=True)


def make_page(models: Sequence[Model], settings: DemoSettings, examples: Sequence[Example]) -> gr.Blocks:
    """The page; ``launch_options`` says how it is to be launched.

    Args:
        models: at least one.
        settings: of the program.
        examples: to choose from.
    """
    kept = Kept(settings.memory_mb * 1_000_000)
    page = gr.Blocks(analytics_enabled=False, title="e2net", delete_cache=(60, _FILES))
    with page:
        gr.HTML(_header(models))
        keys = gr.State([], time_to_live=_FORGET, delete_callback=kept.drop)
        shown = gr.State("")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=2, min_width=300):
                drop = gr.File(label="Pictures and films", file_count="multiple", height=150, elem_id="drop")
                gr.HTML(_limits(settings), elem_id="limits")
                said = gr.HTML(elem_id="said")
                yours = _choice("Yours", [], "yours")
                offered = _choice("Examples", [one.small for one in examples], "examples")
            with gr.Column(scale=7, min_width=300, elem_id="results"):
                hint = gr.HTML(_HINT, elem_id="hint")
                with gr.Column(visible=False) as results:
                    title = gr.HTML(elem_id="title")
                    with gr.Row(elem_id="controls"):
                        threshold = _slider(first_threshold(models, settings))
                        save = gr.Button("Download all", scale=0, min_width=160, elem_id="save")
                    panels = _panels(models)
        gr.HTML(_footer())
        fetched = gr.File(visible=False)
        parts = [title, *(part for panel in panels for part in panel.parts)]
        visit = _Visit(models, panels, settings, kept, [one.file for one in examples])

        state, outputs = [keys, shown, threshold], [drop, keys, shown, said, yours, hint, results, *parts]
        private: dict[str, Any] = {"api_visibility": "private"}
        network = {**private, "concurrency_id": "network", "concurrency_limit": 1, "show_progress_on": [drop, hint]}
        drawing = {**private, "concurrency_id": "drawing", "concurrency_limit": 4, "show_progress": "hidden"}
        saving = {**private, "concurrency_id": "saving", "concurrency_limit": 1, "show_progress_on": [save]}
        came = drop.upload(visit.dropped, [drop, *state], outputs, **network)
        taken = offered.select(visit.offered, state, outputs, **network)
        again = yours.select(visit.chosen, [keys, threshold], [shown, said, *parts], **drawing)
        for event in (came, taken, again):
            event.success(None, js=_SCROLL)
        # While one is drawn only the last of those that come is waited for.
        threshold.change(visit.moved, [shown, threshold], [said, *parts], trigger_mode="always_last", **drawing)
        made = save.click(visit.saved, [keys, threshold], [said, fetched], **saving)
        made.success(None, [fetched], js=_FETCH)
    page.queue(max_size=settings.queue, api_open=False)
    return page


def launch_options(settings: DemoSettings) -> dict[str, Any]:
    """For ``launch``: on the address of the settings and nowhere else, without anything of Gradio's own services."""
    fonts = [gr.themes.Font(name) for name in ("Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "sans-serif")]
    codes = [gr.themes.Font(name) for name in ("Menlo", "Consolas", "DejaVu Sans Mono", "monospace")]
    return {
        "server_name": settings.host,
        "server_port": settings.port,
        "max_file_size": settings.max_mb << 20,  # as Gradio counts when it says so
        "theme": gr.themes.Base(primary_hue="emerald", neutral_hue="slate", font=fonts, font_mono=codes),
        "css_paths": [_STYLE],
        "footer_links": [],
        **{"share": False, "inbrowser": False, "quiet": True, "pwa": False, "ssr_mode": False, "mcp_server": False},
        **{"enable_monitoring": False, "prevent_thread_lock": True},
    }


class _Visit:
    """What happens when a visitor does something. Holds nothing of any visitor: that is in the page's states."""

    def __init__(
        self,
        models: Sequence[Model],
        panels: Sequence[Panel],
        settings: DemoSettings,
        kept: Kept,
        examples: Sequence[Path],
    ) -> None:
        self._models, self._panels, self._settings, self._kept = models, panels, settings, kept
        self._examples = examples
        self._limits = Limits(settings.max_megapixels, settings.max_frames)
        self._count = 1 + sum(len(panel.parts) for panel in panels)

    def dropped(
        self,
        files: list[str],
        keys: list[str],
        shown: str,
        threshold: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - as Gradio wants it
    ) -> list[Any]:
        """Files were uploaded."""
        most = self._settings.max_files
        lines = [f"{len(files)} files are too many at once: the first {most} were taken"] if len(files) > most else []
        # Not deleted here: whoever sends the same file meanwhile has the same place.
        return self._looked([Path(file) for file in files[:most]], keys, shown, threshold, progress, lines)

    def offered(
        self,
        keys: list[str],
        shown: str,
        threshold: float,
        event: gr.SelectData,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """An example was chosen."""
        return self._looked([self._examples[event.index]], keys, shown, threshold, progress, [])

    def _looked(
        self,
        files: Sequence[Path],
        keys: list[str],
        shown: str,
        threshold: float,
        progress: gr.Progress,
        lines: list[str],
    ) -> list[Any]:
        added: list[str] = []
        for k, file in enumerate(files):
            try:
                one = look(file, self._models, self._limits, _told(progress, k, len(files), file.name))
            except ValueError as error:
                lines.append(str(error))
            else:
                added.append(self._kept.add(one))
                lines += [f"{one.name}: {note}" for note in one.notes]
        most = self._settings.max_files
        self._kept.drop([*keys, *added][:-most])
        there = {key: had for key in [*keys, *added][-most:] if (had := self._kept.get(key)) is not None}
        first = next((key for key in added if key in there), "")
        small = [had.small for had in there.values()]
        strip = gr.update(value=small, visible=bool(small), selected_index=None)
        said = [None, list(there), first or shown, _said(lines), strip]
        if not first:
            return [*said, *[gr.skip()] * (2 + self._count)]
        return [*said, gr.update(visible=False), gr.update(visible=True), *self._updates(there[first], threshold)]

    def chosen(self, keys: list[str], threshold: float, event: gr.SelectData) -> list[Any]:
        """One of the visitor's own files was chosen."""
        key = keys[event.index] if event.index < len(keys) else ""
        one = self._kept.get(key)
        if one is None:
            return [key, _said([_GONE]), *[gr.skip()] * self._count]
        return [key, _said([f"{one.name}: {note}" for note in one.notes]), *self._updates(one, threshold)]

    def moved(self, shown: str, threshold: float) -> list[Any]:
        """The threshold is another; the network does not run again."""
        one = self._kept.get(shown)
        if one is None:
            return [_said([_GONE] if shown else []), *[gr.skip()] * self._count]
        return [gr.skip(), *self._updates(one, threshold, moved=True)]

    def saved(self, keys: list[str], threshold: float) -> list[Any]:
        """Everything is wanted as a file."""
        looks = [one for key in keys if (one := self._kept.get(key)) is not None]
        if not looks:
            raise gr.Error(_GONE, print_exception=False)
        return [gr.skip(), str(archive(looks, self._models, threshold, _new_folder()))]

    def _updates(self, one: Look, threshold: float, moved: bool = False) -> list[Any]:
        parts = [part for k, panel in enumerate(self._panels) for part in panel.updates(one, k, threshold, moved)]
        return [gr.skip() if moved else _title(one), *parts]


def _told(progress: gr.Progress, index: int, count: int, name: str) -> Callable[[int, int], None]:
    """Tells a visitor how far file number ``index`` is."""

    def told(done: int, steps: int) -> None:
        progress((index + done / steps) / count, desc=name)

    return told


def _new_folder() -> Path:
    """An empty one among the page's files, which Gradio deletes when they are old."""
    return Path(tempfile.mkdtemp(dir=os.environ[FILES]))


def _choice(label: str, pictures: Sequence[Any], name: str) -> gr.Gallery:
    return gr.Gallery(
        list(pictures),
        label=label,
        columns=3,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        visible=bool(pictures),
        buttons=[],
        elem_id=name,
        elem_classes=["choice"],
    )


def _slider(first: float | None) -> gr.Slider:
    """One for all models."""
    value = first or THRESHOLD
    return gr.Slider(
        min(0.01, value),  # beyond its ends Gradio refuses every request
        max(0.99, value),
        value,
        step=0.01,
        label="Threshold",
        info="Above this probability a pixel belongs to an object",
        visible=first is not None,
        buttons=["reset"],
        min_width=300,
        elem_id="threshold",
    )


def _panels(models: Sequence[Model]) -> list[Panel]:
    """Makes all views here: of one model in two columns, of several a row for each view and a column for each model."""
    panels = [Panel(model, len(models) == 1) for model in models]
    views: list[View] = [view for view in _TITLES if any(view in panel.views for panel in panels)]
    if len(panels) == 1:
        rows = [[(panels[0], view) for view in views[k : k + 2]] for k in range(0, len(views), 2)]
    else:
        rows = [[(panel, view) for panel in panels] for view in views]
    for row in rows:
        with gr.Row(equal_height=False, elem_classes=["views"]):
            for panel, view in row:
                with gr.Column(min_width=260):
                    if view in panel.views:
                        panel.cell(view)
    with gr.Row(elem_classes=["views"]):
        for panel in panels:
            with gr.Column(min_width=260):
                panel.list_objects()
    return panels


_HINT = """<div class="hint"><p>Drop a picture or a film, or choose an example.</p></div>"""
_GONE = "This result has gone to make room for newer ones; drop the file again."


def _header(models: Sequence[Model]) -> str:
    names = Markup(" ").join(
        Markup('<span class="chip">{} <small>{}</small></span>').format(model.name, model.segmenter.model.task.name)
        for model in models
    )
    return Markup('<header><h1>e2net</h1><div class="chips">{}</div></header>').format(names)


def _limits(settings: DemoSettings) -> str:
    return Markup('<p class="line">{}</p>').format(
        f"Up to {settings.max_files} files of {settings.max_mb} MB; pictures of {settings.max_megapixels} million "
        f"pixels, of films the first {settings.max_frames} frames."
    )


def _said(lines: Sequence[str]) -> str:
    return Markup("").join(Markup('<p class="said">{}</p>').format(line) for line in lines)


def _title(one: Look) -> str:
    height, width = one.predictions[0][0].image.shape[:2]
    frames = "" if one.rate is None else f", {len(one.predictions[0])} frames"
    return Markup("<h2>{} <small>{} × {}{}</small></h2>").format(one.name, width, height, frames)


def _table(found: Prediction, objects: Objects, of: str) -> str:
    """The objects of a picture, as HTML."""
    if not objects.listed:
        return Markup('<p class="line">{}: no object above {:.2f}</p>').format(f"Objects{of}", found.threshold)
    rows = Markup("").join(
        Markup("<tr><td>{}</td><td>{:.3f}</td><td>{} %</td><td>{}, {}</td><td>{} × {}</td></tr>").format(
            number, one["score"], _percent(one["area"] / found.pixels), *one["bbox"]
        )
        for number, one in enumerate(objects.listed, 1)
    )
    more = Markup('<p class="line">and {} smaller ones</p>').format(objects.more) if objects.more else ""
    head = "<tr><th>#</th><th>score</th><th>of picture</th><th>at x, y</th><th>size</th></tr>"
    table = Markup("<h3>{}</h3><table>" + head + "{}</table>{}")
    return table.format(f"Objects{of}", rows, more)


def _legend(found: Prediction, of: str) -> str:
    """What the colours of a map mean, as HTML."""
    entries = found.task.legend(found.map)
    chips = [Markup('<span class="colour" style="--own: rgb({}, {}, {})">{}</span>').format(*c, n) for n, c in entries]
    return Markup('<h3>{}</h3><p class="legend">{}</p>').format(f"Map{of}", Markup(" ").join(chips))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if share >= 0.01 else f"{100 * share:.2f}"


def _footer() -> str:
    return Markup("<footer>e2net {} · files go to the machine that this page is on, and no further</footer>").format(
        e2net.__version__
    )
