"""The files around the code say what is so."""

import re
import tomllib

import pytest
import yaml
from conftest import ROOT

import e2net

SCRIPTS = {name: (ROOT / ".ci" / name).read_text() for name in ("run", "oldest")}


def test_the_citation_is_of_this_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == e2net.__version__ and citation["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors", "type"} <= citation.keys()


def test_the_changelog_has_its_form():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]" and e2net.__version__ in text
    kinds = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_workflow_runs_the_scripts_and_nothing_else():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/${{ matrix.script }}"]
    assert set(job["strategy"]["matrix"]["script"]) == set(SCRIPTS)
    assert all((ROOT / ".ci" / name).stat().st_mode & 0o111 for name in SCRIPTS)


def test_commits_are_looked_at_by_the_same_linters():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"  # what is installed, so that versions cannot differ
    commands = {hook["entry"].replace(" --force-exclude", "") for hook in repository["hooks"]}
    lines = {line.removesuffix(" .") for line in SCRIPTS["run"].splitlines()}
    assert commands <= lines
    assert {line for line in lines if line.startswith(("ruff", "mypy"))} == commands


@pytest.mark.parametrize("kind", ["fault", "wish"])
def test_forms_of_issues_are_whole(kind):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{kind}.yml").read_text())
    assert form["name"] and form["description"]
    assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"])


def test_links_of_the_pages_beside_the_code_lead_somewhere():
    for page in ROOT.glob("*.md"):
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (ROOT / link).exists(), f"{page.name}: {link}"
