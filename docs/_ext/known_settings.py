"""What can be set, read from the code: of each config group its options, and of each constructor its keys.

Types and defaults are those of the signatures and of ``conf/``; meanings those of the docstrings' ``Args``. Imports no
Sphinx, so that a test can ask whether anything lacks.
"""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import yaml

from e2net.features.verbs import VERBS
from e2net.runs.config import PLAIN, find_target, type_hints, type_words

CONF = Path(__file__).parents[2] / "conf"
# What a program hands to a constructor itself, whatever the config says.
_GIVEN = ("task", "protocol", "channels", "strides", "out_channels", "pretrained", "backbone", "gram_size")
# Programs whose settings are a dataclass: the module and its class.
PROGRAMS = {
    **{
        name: (f"e2net.{name}.settings", f"{name.title()}Settings")
        for name in ("predict", "serve", "demo", "compare", "check", "export")
    },
    "encoders": ("e2net.encoders.options", "ListingSettings"),
    "profile": ("e2net.profile.__main__", "ProfileSettings"),
    **{f"features {verb}": (f"e2net.features.verbs.{verb}", "Settings") for verb in VERBS},
}
_REFERENCE = re.compile(r"(?:see|as (?:in|of|for)) (?:the class|(?::(?:class|meth|func):)?`~?([\w.]+)`)")


@dataclass(frozen=True)
class Setting:
    """One key."""

    key: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Constructor:
    """What options with one ``_target_`` build, and its keys."""

    target: str
    options: list[str]
    settings: list[Setting]


def arguments_of(docstring: str | None) -> dict[str, str]:
    """{name: meaning} of a docstring's ``Args`` or ``Attributes``, on one line each."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    found: dict[str, str] = {}
    names: list[str] = []
    within = False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if indent == 0 and line:
            within = line in ("Args:", "Attributes:")
        elif within and indent == 4:
            head, _, text = line.strip().partition(": ")
            names = [name.strip() for name in head.removesuffix(":").split(",")]
            found |= dict.fromkeys(names, text)
        elif within and line:
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found


def meaning_of(target: Callable[..., Any], name: str) -> str:
    """What a parameter means: of the constructor, its class or a base, or the other one that a docstring points to."""
    owner = target if isinstance(target, type) else getattr(target, "__self__", target)
    places = [target, *getattr(owner, "__mro__", ())]
    for place in places:
        own = vars(place) if isinstance(place, type) else {}
        documented = [own.get("__doc__"), getattr(own.get("__init__"), "__doc__", None)] if own else [place.__doc__]
        text = next((said[name] for doc in documented if name in (said := arguments_of(doc))), "")
        pointed = _REFERENCE.match(text)
        if not pointed:
            if text:
                return text
        elif pointed[1]:
            other = _named(pointed[1], owner)
            if other is not None and other is not place and (found := meaning_of(other, name)):
                return found
    return ""


def _named(path: str, owner: Any) -> Any:
    """What a docstring's reference names: a method of the same class, something of its module, or a dotted path."""
    *modules, name = path.split(".")
    while modules:
        try:
            found: Any = importlib.import_module(".".join(modules))
            break
        except ModuleNotFoundError:
            name = f"{modules.pop()}.{name}"
    else:
        found = owner if hasattr(owner, name.split(".")[0]) else importlib.import_module(owner.__module__)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def groups() -> list[str]:
    """Names of the config groups, the folders of ``conf/``."""
    return sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())


def options(group: str) -> dict[str, str]:
    """{option: the first line of its file, which says what it is}."""
    found = {}
    for file in sorted((CONF / group).glob("*.yaml")):
        comments = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        found[file.stem] = next(line[2:] for line in comments if not line.startswith("# @"))
    return found


def content(group: str, option: str) -> dict[str, Any]:
    """What an option's file says, together with the files that it builds on."""
    said = yaml.safe_load((CONF / group / f"{option}.yaml").read_text(encoding="utf-8")) or {}
    merged: dict[str, Any] = {}
    for base in said.pop("defaults", []):
        if isinstance(base, str) and base != "_self_":
            merged |= content(group, base)
    return merged | said


def is_recipe(group: str, option: str) -> bool:
    """Whether an option's file sets keys of all groups, not those of its own."""
    return (CONF / group / f"{option}.yaml").read_text(encoding="utf-8").startswith("# @package _global_")


def constructors(group: str) -> list[Constructor]:
    """What a group's options build, nested ones after those that hold them."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for option in options(group):
        for path, node in nodes(group, option):
            found.setdefault(f"{node['_target_']} {path}", {})[option] = node
    return [_constructor(key.split()[0], key.split()[1], one, group) for key, one in found.items()]


def nodes(group: str, option: str) -> list[tuple[str, dict[str, Any]]]:
    """Where an option's file builds something, and with what."""
    return list(_nodes(content(group, option), "" if is_recipe(group, option) else group))


def _nodes(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _nodes(value, f"{path}.{key}".lstrip("."))


def _constructor(path: str, place: str, given: dict[str, dict[str, Any]], group: str = "") -> Constructor:
    target = find_target(path, place, trainer=place == "trainer")
    hints = type_hints(target)
    settings = []
    for name, parameter in inspect.signature(target).parameters.items():
        in_yaml = any(name in node for node in given.values())
        foreign = path.startswith("lightning.")  # of whose many parameters those are shown that the files have
        if in_yaml or not (foreign or name in _GIVEN or parameter.default is inspect.Parameter.empty):
            key = f"{'' if in_yaml else '+'}{place}.{name}"
            own = parameter.default
            nodes_of = {option: node.get(name, own) for option, node in given.items()} if in_yaml else {}
            default = _default({o: value for o, value in nodes_of.items() if value is not inspect.Parameter.empty}, own)
            # What Lightning says of its Trainer names defaults that are not those of the files.
            meaning = _said(group, given, name) if foreign else meaning_of(target, name)
            settings.append(Setting(key, type_words(hints.get(name, Any)), default, meaning))
    return Constructor(path, list(given), settings)


def _said(group: str, options: Iterable[str], key: str) -> str:
    """What the files of a group's options say of a key: the comment before it."""
    texts = [(CONF / group / f"{option}.yaml").read_text(encoding="utf-8") for option in options]
    return next((said for text in texts if (said := _comments(text).get(key))), "")


def _default(given: dict[str, Any], own: Any) -> str:
    """A value as a command line has it: that of the files; of each where they differ and it is short."""
    values = {option: written(value) for option, value in given.items()}
    different = list(dict.fromkeys(values.values()))
    if not different:
        return written(own)
    if len(different) == 1:
        return different[0]
    by_option = ", ".join(f"{value} ({' '.join(o for o in values if values[o] == value)})" for value in different)
    return by_option if len(by_option) < 80 else "by option"


def written(value: Any) -> str:
    """A value as it is written in YAML, on one line."""
    if isinstance(value, dict) and "_target_" in value:
        return "see below"
    if isinstance(value, tuple):
        value = list(value)
    if value == "???":
        return "to be given"
    if isinstance(value, str):
        return value or '""'
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def top_level(name: str) -> tuple[list[Setting], list[Constructor]]:
    """The keys of ``conf/<name>.yaml`` that are no groups, and what it builds itself.

    The meaning of a key is the comment before it.
    """
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    said = {key: value for key, value in yaml.safe_load(text).items() if key not in ("defaults", "hydra")}
    comments = _comments(text)
    settings = [
        Setting(key, type_words(PLAIN[name][key]), written(said[key]), comments.get(key, ""))
        for key in PLAIN[name]
        if key in said
    ]
    return settings, [_constructor(node["_target_"], path, {name: node}) for path, node in _nodes(said, "")]


def program(name: str) -> tuple[str, list[Setting]]:
    """How a program of :data:`PROGRAMS` is used, and its settings."""
    module = importlib.import_module(PROGRAMS[name][0])
    schema = getattr(module, PROGRAMS[name][1])
    hints = get_type_hints(schema, include_extras=True)
    found = [one for one in dataclasses.fields(schema) if get_origin(hints[one.name]) is Annotated]
    return module.USAGE, [
        Setting(
            one.name,
            type_words(get_args(hints[one.name])[0]),
            "to be given" if one.default is dataclasses.MISSING else written(one.default),
            get_args(hints[one.name])[1],
        )
        for one in found
    ]


def _comments(text: str) -> dict[str, str]:
    """{key at the left margin: the comment lines right before it}."""
    found: dict[str, str] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            lines.append(line.removeprefix("#").strip())
        else:
            if key := re.match(r"(\w+):", line):
                found[key[1]] = " ".join(lines)
            lines = []
    return found
