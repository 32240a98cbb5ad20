"""The pages for readers, in the repository, and what stands in them."""

from functools import cache

from conftest import ROOT
from markdown_it import MarkdownIt

PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "data" / "README.md", ROOT / "checkpoint" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]  # fmt: skip


@cache
def tokens(page):
    """Of a page's Markdown, those within lines after their line."""
    found = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    return [one for token in found for one in (token, *(token.children or []))]


def blocks(page, language):
    """Fenced blocks of a language."""
    return [token.content for token in tokens(page) if token.type == "fence" and token.info.strip() == language]


def inline_code(page):
    """What stands between backticks in a line."""
    return [token.content for token in tokens(page) if token.type == "code_inline"]
