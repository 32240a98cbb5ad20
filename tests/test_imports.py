"""The direction of imports is one: siblings never import each other, and only what runs it imports the engine."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from e2net.tasks import Camouflage, Depth, Semantic

# Each of them takes a second or more to import.
HEAVY = {"torch", "lightning", "torchmetrics", "transformers", "timm", "peft", "torchvision"}
PACKAGE = Path(__file__).parent.parent / "e2net"

# Each room with those that it may import from.
ALLOWED = {
    room: set(below.split())
    for room, below in {
        "__main__": "",
        "symbolic": "",
        "attention": "symbolic",
        "arguments": "",
        "files": "",
        "formats": "files",
        "drawing": "",
        "trees": "",
        "film": "files trees",
        "pictures": "formats trees",
        "installation": "",
        "lock": "",
        "neighbours": "",
        "processes": "",
        "page": "",
        "structures": "",
        "progress": "",
        "flops": "",
        "metrics": "structures",
        "encoders": "arguments attention installation structures flops symbolic",
        "decoders": "attention structures symbolic",
        "losses": "processes progress structures",
        "tasks": "drawing formats structures losses metrics",
        "datasets": "files formats lock processes structures tasks",
        "model": "structures encoders decoders tasks",
        "speed": "model processes",
        "hub": "encoders model runs",
        "runs": "files formats installation lock processes structures tasks datasets model",
        "evaluation": "drawing files formats page processes progress structures metrics tasks datasets model speed "
        "runs",
        "training": "files formats processes structures encoders decoders losses tasks datasets model speed runs "
        "evaluation",
        "adapt": "arguments drawing files film formats installation lock neighbours page processes trees structures "
        "encoders losses metrics tasks datasets model speed runs evaluation training",
        "check": "arguments drawing files formats page tasks datasets runs",
        "profile": "arguments flops structures datasets speed runs evaluation training",
        "features": "arguments drawing files film flops formats installation lock neighbours page pictures processes "
        "trees structures encoders decoders losses metrics tasks datasets model speed runs evaluation",
        "predict": "arguments drawing files film formats hub pictures structures trees tasks datasets model speed runs "
        "evaluation training",
        "export": "arguments files formats hub structures symbolic trees tasks datasets model runs evaluation",
        "serve": "arguments predict runs structures",
        "demo": "arguments datasets features film formats page pictures predict runs speed trees",
        "compare": "arguments drawing files flops formats installation lock page tasks datasets model runs evaluation "
        "training",
        # The programs that are no room of their own.
        "train": "arguments installation structures runs training",
        "eval": "arguments installation structures runs evaluation",
    }.items()
}
# Only these may import a plotting, logging, template or configuration framework.
FRAMEWORKS = {
    "gradio": {"demo/__main__.py", "demo/page.py"},
    "hydra": {
        *("adapt/__main__.py", "compare/sweep.py", "eval.py", "runs/config.py", "runs/launch.py", "runs/overrides.py"),
        "train.py",
    },
    "jinja2": {"page/render.py"},
    "matplotlib": {"evaluation/plots.py"},
    "rich": {
        *(
            "check/report.py",
            "export/table.py",
            "encoders/listing.py",
            "evaluation/breakdown.py",
            "evaluation/corruptions.py",
        ),
        "evaluation/report.py",
    },
}


def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module or "")
    return found


def test_layers_import_only_what_is_below_them():
    seen = set()
    for file in PACKAGE.rglob("*.py"):
        relative = file.relative_to(PACKAGE)
        layer = relative.parts[0].removesuffix(".py")
        if layer == "__init__":
            continue
        seen.add(layer)
        for name in _imports(file):
            parts = name.split(".")
            if parts[0] == "e2net" and len(parts) > 1 and parts[1] != layer:
                assert parts[1] in ALLOWED[layer], f"{relative} imports {name}"
            if parts[0] in FRAMEWORKS:
                assert str(relative) in FRAMEWORKS[parts[0]], f"{relative} imports {name}"
    assert seen == set(ALLOWED)


def test_no_program_knows_one_task():
    """Neither a score's name, nor an activation, nor a task's own modules: they ask ``tasks.base``."""
    scores = {name for task in (Camouflage, Depth, Semantic) for name in task.directions if len(name) > 1}
    for room in ("training", "evaluation", "hub", "predict", "serve", "demo", "check", "compare", "profile", "export"):
        for file in (PACKAGE / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                assert not (isinstance(node, ast.Constant) and node.value in scores), f"{file} names {node.value}"
                assert not (isinstance(node, ast.Attribute) and node.attr == "sigmoid"), f"{file} has a sigmoid"
            own = {name for name in _imports(file) if name.startswith(("e2net.tasks", "e2net.metrics", "e2net.losses"))}
            shared = {"e2net.tasks.base", "e2net.metrics.table", "e2net.metrics.calibration", "e2net.losses"}
            assert own <= shared, f"{file} imports {own}"


@pytest.mark.parametrize(
    "command",
    ["train.py --help", "eval.py --help", "-m e2net --help", "-m e2net train --cfg job"]
    + [
        f"-m e2net.{name} --help"
        for name in (
            "predict",
            "serve",
            "demo",
            "check",
            "compare",
            "profile",
            "encoders",
            "adapt",
            "features",
            "export",
        )
    ],
)
def test_help_is_there_before_torch_is(command):
    whole = [sys.executable, "-X", "importtime", *command.split()]
    done = subprocess.run(whole, check=True, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert "python" in done.stdout or "_target_" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "site" in loaded, "importtime printed nothing that is known"
    assert loaded.isdisjoint(HEAVY)


def test_the_package_and_the_table_of_programs_import_next_to_nothing():
    code = "import sys, e2net, e2net.__main__ as console; assert console.PROGRAMS; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({*HEAVY, "numpy", "cv2", "hydra", "yaml"})


def test_a_table_of_scores_needs_no_lightning_and_a_model_no_hydra():
    """Nor what draws its figures, which is for when all is scored."""
    code = (
        "import sys, e2net.evaluation.predictions, e2net.evaluation.report; from e2net.datasets import FolderData\n"
        f"found = set({sorted(HEAVY - {'torch'} | {'matplotlib'})}) & sys.modules.keys(); assert not found, found\n"
        "import e2net.model, e2net.datasets, e2net.losses, e2net.metrics\n"
        "assert 'hydra' not in sys.modules, 'Hydra was imported'\n"
        "assert 'py_sod_metrics' not in sys.modules, 'a test dependency was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
