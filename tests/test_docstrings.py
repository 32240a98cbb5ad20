"""Each package's docstring says what lies in it."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = sorted(file.parent for file in (ROOT / "e2net").rglob("__init__.py"))
# A line each, or several of a kind in one.
LINE = re.compile(r"^- ((?:``\w+``(?:, )?)+): \S.*$")


def inside(package: Path) -> set[str]:
    """Modules and packages; what a package's program or own code is, its first line says."""
    found = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    return found - {"__init__", "__main__"}


def folders(package: Path) -> set[str]:
    others = {path.name for path in package.iterdir() if path.is_dir() and not (path / "__init__.py").is_file()}
    return others - {"__pycache__"}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: str(package.relative_to(ROOT)))
def test_a_package_names_its_modules(package):
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))
    assert text is not None
    lines = {line: LINE.match(line) for line in text.splitlines() if line.startswith("- ")}
    assert all(lines.values()), [line for line, match in lines.items() if not match]
    named = {name for match in lines.values() if match for name in re.findall(r"``(\w+)``", match[1])}
    assert named == inside(package)
    assert all(f"``{name}/``" in text for name in folders(package))
