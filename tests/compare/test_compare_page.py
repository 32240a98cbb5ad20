"""The report's page: what a run brings along is text in it, whatever it looks like."""

import re
from html.parser import HTMLParser

import pytest
from fake import full_comparison

from e2net.compare.markdown import markdown
from e2net.compare.page import page

EVIL = "\"'><script>alert(1)</script><img src=x onerror=y>&lt;{{ 7 * 7 }}{% x %}<!--BODY-->`|*_evil\r#"


class _Elements(HTMLParser):
    """Elements with the names of their attributes, and all text and attributes' values."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, [name for name, _ in attrs]))
        self.texts += [value for _, value in attrs if value]

    def handle_endtag(self, tag):
        self.elements.append((f"/{tag}", []))

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        self.elements.append(("comment", [data]))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return full_comparison(tmp_path_factory.mktemp("hostile"), EVIL)


def test_strings_of_runs_add_no_element(tmp_path, hostile):
    plain, evil = (_Elements(page(found)) for found in (full_comparison(tmp_path), hostile))
    assert evil.elements == plain.elements
    kinds = {name for name, _ in evil.elements}
    assert {"table", "svg", "polyline", "img", "rect", "circle", "article", "title"} <= kinds and "comment" not in kinds
    joined = "\n".join(evil.texts)
    for place in (
        "one",
        "set",
        "S",
        "MAE",
        "a",
        "key",
        "1",
        "x",
        "rule",
        "machine",
        "failed",
        "warning",
        "fog",
        "rain",
    ):
        assert f"{place}{EVIL}" in joined, place
    assert f"/10{EVIL}" in joined  # a run's folder


def test_every_element_is_closed(hostile):
    opened = []
    for name, _ in _Elements(page(hostile)).elements:
        if name.startswith("/"):
            assert opened.pop() == name[1:]
        elif name not in ("meta", "link", "img"):
            opened.append(name)
    assert opened == []


def test_strings_of_runs_are_text_in_markdown_too(tmp_path, hostile):
    plain, evil = (markdown(found).split("\n") for found in (full_comparison(tmp_path), hostile))
    assert len(evil) == len(plain) and not any("\r" in line for line in evil)
    for line, other in zip(evil, plain, strict=True):
        assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", other))
        assert not re.search(r"<|(?<!\\)_evil", line), line
