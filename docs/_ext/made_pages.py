"""The pages that are made of the code: settings, Python and errors; and the repository's files that are pages too.

A Sphinx extension. What it writes lies in ``docs/reference/``, which git ignores.
"""

import ast
import importlib
import inspect
import json
import os
import pkgutil
import re
from pathlib import Path
from typing import Any

import known_errors
import known_settings as settings
from sphinx.application import Sphinx

import e2net
from e2net.runs.config import OFFERED

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
REFERENCE = DOCS / "reference"
_INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")


def setup(app: Sphinx) -> dict[str, Any]:
    """Of Sphinx."""
    app.connect("builder-inited", lambda app: write_pages())
    app.connect("source-read", read_source)
    return {"parallel_read_safe": True}


def write_pages() -> None:
    """Writes all of ``docs/reference/``, and removes what has no source any more."""
    pages = {f"settings/{name}.md": _top_level_page(name) for name in settings.PLAIN}
    pages |= {f"settings/groups/{group}.md": _group_page(group) for group in settings.groups()}
    pages |= {f"settings/programs/{name}.md": _program_page(name) for name in settings.PROGRAMS}
    pages |= {f"python/{room}.md": _room_page(room) for room in rooms()}
    pages["errors.txt"], pages["examples.txt"] = known_errors.page(), _examples()
    for name, text in pages.items():
        file = REFERENCE / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
    for file in REFERENCE.rglob("*.*"):
        if file.is_file() and file.relative_to(REFERENCE).as_posix() not in pages:
            file.unlink()


def included() -> dict[Path, str]:
    """{file outside of docs/: the page that includes it}."""
    found = {page.stem: _INCLUDE.search(page.read_text(encoding="utf-8")) for page in DOCS.glob("*.md")}
    return {(DOCS / one[1]).resolve(): page for page, one in found.items() if one and one[1].startswith("../")}


def read_source(app: Sphinx | None, name: str, content: list[str]) -> None:
    """Puts included files in their place, and has links to files of the repository go to their pages."""
    here = (DOCS / name).parent

    def include(found: re.Match[str]) -> str:
        file = (here / found[1]).resolve()
        return _linked(file.read_text(encoding="utf-8"), file.parent, here)

    content[0] = _linked(_INCLUDE.sub(include, content[0]), here, here)


def _linked(text: str, folder: Path, here: Path) -> str:
    """A text of one folder with its links as from another; of what has no page the words alone."""
    pages = included()

    def link(found: re.Match[str]) -> str:
        target = (folder / found[2]).resolve()
        if not target.exists():  # no link then, but code
            return found[0]
        if target in pages:
            target = DOCS / f"{pages[target]}.md"
        elif target.suffix == ".md" and not target.is_relative_to(DOCS):
            return found[1]
        return f"[{found[1]}]({_from(here, target)}{found[3] or ''})"

    return _LINK.sub(link, text)


def _from(folder: Path, file: Path) -> str:
    """The way from a folder to a file."""
    return Path(os.path.relpath(file.resolve(), folder)).as_posix()


def _table(rows: list[settings.Setting]) -> list[str]:
    cells = [(f"`{one.key}`", one.kind, f"`{one.default}`", plain(one.meaning.replace("None", "null"))) for one in rows]
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in cells]
    return ["| key | type | default | |", "|---|---|---|---|", *(f"| {line} |" for line in lines), ""]


def plain(docstring: str) -> str:
    """A docstring's text as Markdown on one line."""
    text = _ROLE.sub(r"`\1`", docstring).replace("``", "`")
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_<])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _first_sentences(target: Any) -> str:
    return plain(" ".join(inspect.cleandoc(target.__doc__ or "").split("\n\n")[0].split()))


def _constructors(found: list[settings.Constructor]) -> list[str]:
    lines = []
    for one in found:
        target = settings.find_target(one.target, one.target, trainer=one.target.startswith("lightning."))
        chosen = " Of " + ", ".join(f"`{option}`" for option in one.options) + "."
        lines += [f"## `{one.target}`", "", f"{_first_sentences(target)}{chosen}".strip(), ""]
        lines += _table(one.settings) if one.settings else ["It takes no settings.", ""]
    return lines


def _top_level_page(name: str) -> str:
    own, nodes = settings.top_level(name)
    lines = [f"# `conf/{name}.yaml`", "", "Keys that belong to no group.", "", *_table(own), *_constructors(nodes)]
    return "\n".join(lines)


def _group_page(group: str) -> str:
    lines = [f"# `{group}=`", "", "| option | |", "|---|---|"]
    lines += [f"| `{option}` | {plain(about)} |" for option, about in settings.options(group).items()]
    lines += ["", *_constructors(settings.constructors(group)), "## The files", ""]
    for option in settings.options(group):
        file = f"{_from(REFERENCE / 'settings' / 'groups', settings.CONF / group)}/{option}.yaml"
        lines += [f"```{{literalinclude}} {file}", ":language: yaml", f":caption: {group}/{option}.yaml", "```", ""]
    return "\n".join(lines)


def _program_page(name: str) -> str:
    usage, rows = settings.program(name)
    command = f"python -m e2net.{name}"
    return "\n".join([f"# `{command}`", "", "```text", usage.strip(), "```", "", *_table(rows)])


def _examples() -> str:
    """A row for each notebook and script of ``examples/``: its first line says what it is."""
    lines = ["| | |", "|---|---|"]
    for file in sorted((ROOT / "examples").glob("*.*")):
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".ipynb":
            told = "".join(json.loads(text)["cells"][0]["source"]).lstrip("# ")
        else:
            told = ast.get_docstring(ast.parse(text)) or ""
        lines.append(f"| [`{file.name}`]({_from(REFERENCE, file)}) | {plain(told.splitlines()[0])} |")
    return "\n".join([*lines, ""])


def rooms() -> list[str]:
    """Packages and single modules right below e2net, but for those that only run."""
    found = sorted(one.name for one in pkgutil.iter_modules(e2net.__path__))
    return [name for name in found if name not in ("__main__", "train", "eval")]


def _room_page(room: str) -> str:
    package = importlib.import_module(f"e2net.{room}")
    lines = [f"# `e2net.{room}`", ""]
    lines += ["```{eval-rst}", f".. automodule:: e2net.{room}", "   :members:", "```", ""]
    if not hasattr(package, "__path__"):
        return "\n".join(lines)
    modules = {
        one.name: importlib.import_module(f"e2net.{room}.{one.name}")
        for one in pkgutil.iter_modules(package.__path__)
        if one.name != "__main__"
    }
    lines += ["## Modules", "", "| module | |", "|---|---|"]
    lines += [f"| `{name}` | {_first_sentences(module)} |" for name, module in modules.items()]
    offered = [m for m in modules.values() if m.__name__ in OFFERED]
    for module in offered:
        lines += ["", f"## `{module.__name__}`", "", "```{eval-rst}"]
        lines += [f".. automodule:: {module.__name__}", "   :members:", "```"]
    return "\n".join([*lines, ""])
