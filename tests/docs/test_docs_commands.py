"""Every command of the README and of ``docs/`` would be taken, and the first steps are run as they stand."""

import ast
import importlib
import re
import shutil
from pathlib import Path

import known_settings as settings
import pytest
from commands import COMMAND, WrongError, check, split
from conftest import ROOT
from pages import PAGES, blocks, inline_code
from tiny import tiny_config

import e2net.check.__main__ as check_program
import e2net.predict.__main__ as predict_program
from e2net.evaluation import evaluate, prepare_evaluation
from e2net.runs.config import compose_evaluation, compose_training
from e2net.training import prepare_training, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run folder of a small training."""
    folder = tmp_path_factory.mktemp("docs") / "run"
    train(prepare_training(tiny_config(folder, "trainer.max_epochs=1", "num_samples=0", "logger=csv")))
    return folder


def _commands(page):
    """All of a page: of blocks, and those between backticks that are whole."""
    for block in blocks(page, "bash"):
        yield from split(block)
    for code in inline_code(page):
        if COMMAND.match(code):
            yield from split(code)


def _faults(commands, run):
    for words in commands:
        try:
            check(words, run)
        except WrongError as error:
            yield str(error)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_a_page_would_be_taken(page, run):
    assert not list(_faults(_commands(page), run))


def test_commands_of_the_recipes_would_be_taken(run):
    lines = []
    for file in sorted((ROOT / "conf").glob("*/*.yaml")):
        text = file.read_text(encoding="utf-8")
        lines += [line[1:] for line in text.splitlines() if re.match(r"#\s+python ", line)]
    assert len(lines) > 10
    assert not list(_faults(split("\n".join(re.sub(r"\s{3,}\S.*$", "", line.strip()) for line in lines)), run))


@pytest.mark.parametrize("name", settings.PROGRAMS)
def test_commands_of_a_help_text_would_be_taken(name, run):
    usage = settings.program(name)[0]
    lines = [re.sub(r"\s{3,}.*$", "", line.strip()) for line in usage.splitlines() if line.startswith("  python")]
    assert lines and not list(_faults(split("\n".join(lines)), run))


@pytest.mark.parametrize(
    "command, words",
    [
        ("python train.py decoder.widht=3", "widht"),
        ("python train.py encoder=dinov2_b size=512", "multiple of 14"),
        ("python train.py -m tuning=frozen,lorra", "lorra"),
        ("python train.py optim.lr=fast", "a number"),
        ("python eval.py ckpt=RUN breakdwon=true", "breakdwon"),
        ("python -m e2net.predict ckpt=RUN input=PHOTOS", "output"),
        ("python -m e2net.predikt ckpt=RUN", "no program"),
        ("python -m e2net.features pca input=PHOTOS encoder=tiny colour=true", "colour"),
        ("python -m e2net.adapt data.root=X heads.prototpyes=3", "prototpyes"),
        ("python benchmarks/metrics.py --nothing", "--nothing"),
        ("python benchmarks/nothing.py", "no file"),
        ("pip install 'e2net[exports]'", "no extra"),
        ("E2NET_NOTHING=1 pytest tests/fuzz", "nothing reads"),
        ("pytest tests/nothing", "there is no"),
        ("hf download facebook/dinov2-bose config.json", "dinov2-bose"),
        ("docker build --build-arg BASIS=x .", "no ARG"),
        ("curl http://127.0.0.1:8000/predikt", "no such path"),
        ("srun --nodes=2 python train.py trainer.device=4", "device"),
        ("make coffee", "unknown program"),
    ],
)
def test_wrong_commands_are_found(command, words, run):
    (fault,) = _faults(split(command), run)
    assert words in fault


def test_commands_are_split_as_a_shell_does():
    text = "V=a/b\nfor run in x y; do eval $run output=$run/z; done\n"
    text += "train 'a=[1, 2]' \\\n  $V  # why\none && two > three\n"
    assert list(split(text)) == [
        ["eval", "x", "output=x/z"],
        ["train", "a=[1, 2]", "a/b"],
        ["one"],
        ["two", ">", "three"],
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_of_a_page_parses_and_its_imports_are_there(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "e2net":
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


SMALL = [
    "size=32", "decoder.width=16", "data.batch_size=4", "data.num_workers=0", "data.val_fraction=0.3",
    "trainer.accelerator=cpu", "trainer.max_epochs=1", "num_samples=1", "encoder.config.hidden_size=24",
    "encoder.config.intermediate_size=32", "logger=csv",
]  # fmt: skip


def test_first_steps_lead_to_a_picture(tmp_path, monkeypatch):
    """Each command and each block of Python of that page in its order, with twelve pictures and the tiny encoder."""
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "first_steps.md"
    commands = [words for block in blocks(page, "bash") for words in split(block)]
    make, use = blocks(page, "python")
    exec(make.replace("ProceduralPairs(50", "ProceduralPairs(12"), {})
    assert len(list(Path("FROGS/train/GT").iterdir())) == 12

    (checking,) = (words[3:] for words in commands if "e2net.check" in words)
    assert check_program.main(checking) == 0 and Path("checked/check.html").is_file()
    training = next(words[2:] for words in commands if "run_dir=runs/frogs" in words)
    kept = [one for one in training if one not in ("experiment=fast", "encoder=dinov2_s")]
    assert len(kept) == len(training) - 2
    train(prepare_training(compose_training([*kept, *SMALL])))
    for told in re.findall(r"\| (?:\*\*)?`runs/frogs/([^`]+)`", page.read_text(encoding="utf-8")):
        assert Path("runs/frogs", told).exists(), told
    (scoring,) = (words[2:] for words in commands if "breakdown=true" in words)
    evaluate(prepare_evaluation(compose_evaluation(scoring)))
    assert Path("runs/frogs/evaluated/breakdown.html").is_file()

    shutil.copytree("FROGS/train/Image", "PHOTOS")
    (predicting,) = (words[3:] for words in commands if "e2net.predict" in words)
    assert predict_program.main([*predicting, "device=cpu"]) == 0 and len(list(Path("OUT/overlays").iterdir())) == 12
    next(Path("PHOTOS").iterdir()).rename("frog.jpg")
    exec(use, {})
    assert Path("frog_overlay.jpg").is_file()
