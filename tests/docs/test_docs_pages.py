"""Links lead somewhere, every setting has a meaning, every error a remedy, every word of the glossary its code."""

import importlib
import re
from typing import Any
from urllib.parse import urlparse

import known_errors as errors
import known_settings as settings
import made_pages
import pytest
from conftest import ROOT
from mdit_py_plugins.anchors.index import slugify
from pages import PAGES, inline_code, tokens


def _anchors(page):
    found = tokens(page)
    return {slugify(found[i + 1].content) for i, token in enumerate(found) if token.type == "heading_open"}


def _fault(page, link):
    """What is wrong with a link."""
    path, _, anchor = link.partition("#")
    if re.match(r"\w+:", link):
        url = urlparse(link)
        well = url.scheme == "https" and re.fullmatch(r"[\w.-]+\.\w+", url.netloc) and " " not in link
        return "" if well else "no https address"
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or not target.is_relative_to(ROOT):
        return "no such file"
    if anchor and anchor not in (_anchors(target) if target.suffix == ".md" else ()):
        return "no such heading"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    links = [t.attrGet("href") for t in tokens(page) if t.type == "link_open"]
    links += [t.attrGet("src") for t in tokens(page) if t.type == "image"]
    wrong = {link: fault for link in links if (fault := _fault(page, link))}
    assert not wrong


def test_what_is_wrong_with_links_is_found():
    page = ROOT / "docs" / "train.md"
    for link in ("nowhere.md", "train.md#nowhere", "#nowhere", "http://example.org", "https://", "../../outside"):
        assert _fault(page, link), link
    assert not _fault(page, "evaluate.md#calibration") and not _fault(page, "#the-run-folder")


def test_every_page_is_reached_from_the_first():
    """By the table of contents, which the site is built from with warnings as errors."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^(?:[^|`<\n]+ <)?(\w+)>?$", index, re.MULTILINE))
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} == listed


@pytest.mark.parametrize("group", settings.groups())
def test_every_key_of_a_group_has_type_default_and_meaning(group):
    assert settings.options(group) and all(len(about) > 10 for about in settings.options(group).values())
    for constructor in settings.constructors(group):
        _complete(constructor.settings)
        shown = {one.key.rpartition(".")[2] for one in constructor.settings}
        for option in constructor.options:
            node = next(n for _, n in settings.nodes(group, option) if n.get("_target_") == constructor.target)
            assert set(node) - {"_target_"} <= shown, (option, set(node) - shown)


@pytest.mark.parametrize("name", settings.PLAIN)
def test_every_key_of_a_config_has_type_default_and_meaning(name):
    own, constructors = settings.top_level(name)
    assert {one.key for one in own} == set(settings.PLAIN[name])
    _complete(own)
    for constructor in constructors:
        _complete(constructor.settings)


@pytest.mark.parametrize("name", settings.PROGRAMS)
def test_every_setting_of_a_program_has_type_default_and_meaning(name):
    usage, found = settings.program(name)
    assert found and f"e2net.{name}" in usage
    _complete(found)


def _complete(found):
    for one in found:
        assert one.kind and one.default and len(one.meaning) > 5, one
        assert "None" not in one.kind and "typing" not in one.kind, one
        assert not re.match(r"(see|as in) ", one.meaning), one


def test_arguments_of_a_docstring():
    def made(first, second, third):
        """Does it.

        Args:
            first, second: of both,
                on two lines.
            third: see :func:`other`.

        Raises:
            ValueError: never.
        """

    assert settings.arguments_of(made.__doc__) == {
        "first": "of both, on two lines.",
        "second": "of both, on two lines.",
        "third": "see :func:`other`.",
    }


def test_every_message_says_what_was_expected_or_what_to_do():
    silent = [f"{one.place}: {one.text}" for one in errors.messages() if not one.remedy]
    assert len(errors.messages()) > 500 and not silent


def test_messages_are_read_from_code(tmp_path, monkeypatch):
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "file.py").write_text(
        "LIMIT, _MOST = 'at most 3', 1 << 4\n"
        "Kind = Literal['map', 'mask']\n"
        "def check(key, value, names):\n"
        "    if value: raise ValueError(f'{key}={value!r}: expected {LIMIT}, found {len(names)} of {value.size}')\n"
        "    if names: raise _made(names)\n"
        "    if key: raise ValueError(f'{key}: expected one of {\", \".join(get_args(Kind))}, found {value.min()}')\n"
        "    if value < 1: raise ValueError(f'x: a must be at least 1 and b at most {_MOST} (off; 0), found {value}')\n"
        "    raise TypeError('a bug')\n"
        "def own(names, key):\n"
        "    for LIMIT in names: raise ValueError(f'expected {LIMIT}, found none. Write {key}=...')\n"
        "def _made(names):\n"
        "    return FileNotFoundError(f'no file {names[0]}; copy it again')\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(errors, "PACKAGE", tmp_path)
    found = errors.messages.__wrapped__()
    assert [(one.place, one.text, one.remedy) for one in found] == [
        ("room/file.py: check", "<key>=<value>: expected at most 3, found <number of names> of <size>", "at most 3"),
        ("room/file.py: check", "no file <names>; copy it again", "copy it again"),
        ("room/file.py: check", "<key>: expected one of map, mask, found <lowest>", "one of map, mask"),
        (
            "room/file.py: check",
            "x: a must be at least 1 and b at most 16 (off; 0), found <value>",
            "a must be at least 1 and b at most 16 (off; 0)",
        ),
        ("room/file.py: own", "expected <LIMIT>, found none. Write <key>=...", "Write <key>=..."),
    ]


def test_words_of_the_glossary_are_those_of_the_code():
    page = ROOT / "docs" / "glossary.md"
    named = [code for code in inline_code(page) if code.startswith(("e2net.", "conf/"))]
    assert len(named) > 30
    missing = [code for code in named if not ((ROOT / code).exists() if "/" in code else _exists(code))]
    assert not missing


def _exists(path):
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            # What a class only says of its objects, in annotations or its docstring, is there too.
            said = {**getattr(found, "__annotations__", {}), **settings.arguments_of(found.__doc__)}
            found = getattr(found, name, said.get(name))
        return found is not None
    return False


def test_links_of_an_included_file_go_to_pages_of_the_site(tmp_path, monkeypatch):
    for file, text in {
        "GUIDE.md": "[one](docs/one.md#part) [data](data/README.md) ![x](docs/x.jpg) [law](LAW.md) call[name](value)",
        "LAW.md": "",
        "data/README.md": "[guide](../GUIDE.md)",
        "docs/one.md": "[guide](../GUIDE.md) [file](../code.py) [site](https://example.org)",
        "docs/x.jpg": "",
        "code.py": "",
        "docs/guide.md": "```{include} ../GUIDE.md\n```\n",
        "docs/data.md": "```{include} ../data/README.md\n```\n",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    monkeypatch.setattr(made_pages, "DOCS", tmp_path / "docs")
    expected = {
        "guide": "[one](one.md#part) [data](data.md) ![x](x.jpg) law call[name](value)\n",
        "data": "[guide](guide.md)\n",
        "one": "[guide](guide.md) [file](../code.py) [site](https://example.org)",
    }
    for name, text in expected.items():
        content = [(tmp_path / "docs" / f"{name}.md").read_text(encoding="utf-8")]
        made_pages.read_source(None, name, content)
        assert content == [text]
