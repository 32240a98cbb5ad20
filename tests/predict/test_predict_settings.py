"""Arguments of the command line and the files they mean, without any model."""

import subprocess
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest

from e2net.arguments import help_text, read_settings
from e2net.formats import EXTENSIONS
from e2net.predict.inputs import find_inputs
from e2net.predict.settings import USAGE, PredictSettings
from e2net.trees import PICTURES

NEEDED = ["ckpt=a", "input=b", "output=c"]
_parse = partial(read_settings, PredictSettings)


def test_text_is_taken_as_it_stands():
    settings = _parse(["ckpt=1", "input=*/[ab]: #1=x.jpg", "output=null", "encoder_path=null", "size=[64,128]"])
    assert (settings.ckpt, settings.input, settings.output) == ("1", "*/[ab]: #1=x.jpg", "null")
    assert settings.encoder_path is None and settings.size == [64, 128]


@pytest.mark.parametrize(
    "argument, message",
    [
        ("cutuots=true", "unknown setting 'cutuots'; did you mean cutouts?"),
        ("zzz=1", "unknown setting 'zzz'; see --help"),
        ("--cutouts", "expected key=value, found '--cutouts'"),
        ("cutouts=perhaps", "cutouts=perhaps: expected bool, found 'perhaps'"),
        ("cutouts=1", "cutouts=1: expected bool, found 1"),
        ("batch_size=0", "batch_size=0: expected at least 1"),
        ("batch_size=true", "batch_size=true: expected int, found True"),
        ("scales=1", "scales=1: expected list or null, found 1"),
        ("batch_size=[", "batch_size=[: expected int"),
        ("threshold=1", "threshold=1.0: expected a probability between 0 and 1"),
        ("size=large", "size=large: expected int or list or null, found 'large'"),
        ("ckpt=b", "ckpt is given twice"),
    ],
)
def test_wrong_arguments_are_named(argument, message):
    with pytest.raises(ValueError) as error:
        _parse([*NEEDED, argument])
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("missing", NEEDED)
def test_needed_settings_have_no_default(missing):
    with pytest.raises(ValueError, match=f"{missing.split('=')[0]} has no value"):
        _parse([a for a in NEEDED if a != missing])


def test_help_tells_every_key_and_its_true_default():
    lines = help_text(PredictSettings, USAGE).split("Settings (key=value):\n")[1].splitlines()
    shown = dict(line.split()[0].split("=") for line in lines)
    assert list(shown) == [f.name for f in fields(PredictSettings)] and max(map(len, lines)) <= 120
    needed = {"ckpt", "input", "output"}
    assert {k for k, v in shown.items() if not v} == needed
    given = [f"{k}={v}" for k, v in shown.items() if k not in needed]
    assert _parse([*NEEDED, *given]) == _parse(NEEDED)


def test_wrong_settings_are_answered_before_torch_is_imported(tmp_path):
    code = (
        "import sys; from e2net.predict.__main__ import main;"
        "assert main(['ckpt=x', 'input=nowhere', 'output=out']) == 2 and main(['--help']) == 0 and main([]) == 2;"
        "import e2net; assert not {'torch', 'cv2', 'hydra', 'numpy'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stderr == "error: input=nowhere: expected a file, a folder or a pattern, found nothing there\n"


def test_every_picture_that_can_be_read_is_an_input():
    assert set(EXTENSIONS) < set(PICTURES)


@pytest.fixture
def tree(tmp_path):
    for name in ("a.jpg", "b.PNG", "b.jpg", "notes.txt", ".hidden.jpg", "sub/a.jpg", "sub/film.MP4", ".git/c.jpg"):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path / "in"


def _names(items):
    return {i.relative.as_posix(): i.name.as_posix() for i in items}


def test_folder_with_its_structure_and_stems_that_meet(tree):
    items = find_inputs(str(tree), tree.parent / "out")
    expected = {"a.jpg": "a", "b.PNG": "b.PNG", "b.jpg": "b.jpg", "sub/a.jpg": "sub/a", "sub/film.MP4": "sub/film"}
    assert _names(items) == expected
    assert [i.relative.name for i in items if i.film] == ["film.MP4"]


def test_patterns_keep_the_structure_below_their_fixed_part(tree):
    out = tree.parent / "out"
    assert _names(find_inputs(f"{tree}/*.jpg", out)) == {"a.jpg": "a", "b.jpg": "b"}
    assert _names(find_inputs(f"{tree}/**/a.*", out)) == {"a.jpg": "a", "sub/a.jpg": "sub/a"}
    assert _names(find_inputs(str(tree / "sub" / "a.jpg"), out)) == {"a.jpg": "a"}
    (tree / "odd[1].jpg").touch()
    assert _names(find_inputs(str(tree / "odd[1].jpg"), out)) == {"odd[1].jpg": "odd[1]"}


def test_results_inside_the_input_are_no_inputs(tree):
    before = find_inputs(str(tree), tree / "out")
    for kind in ("maps", "overlays", "cutouts"):
        (tree / "out" / kind).mkdir(parents=True)
        (tree / "out" / kind / "a.png").touch()
    assert find_inputs(str(tree), tree / "out") == before
    assert {"a.jpg", "sub/a.jpg"} <= set(_names(find_inputs(f"{tree}/**/*", tree / "out")))
    assert not any("out" in i.relative.parts for i in find_inputs(f"{tree}/**/*", tree / "out"))


@pytest.mark.parametrize(
    "text, output, message",
    [
        ("{}/nothing", "out", "found nothing there"),
        ("{}/*.gif", "out", "expected a pattern that matches files, found no match"),
        ("{}/notes.txt", "out", r"expected pictures \(.*\) or films \(.*\), found 1 other files \(.txt\)"),
        ("{}/empty", "out", "found no files"),
        ("{}", "{}", "expected another folder than the input's"),
        ("{}/maps", "{}", "is an input and lies where results are written"),
        ("{}/maps/x.png", "{}", "is an input and lies where results are written"),
    ],
)
def test_wrong_inputs_are_named(tree, text, output, message):
    (tree / "empty").mkdir()
    (tree / "maps").mkdir()
    (tree / "maps" / "x.png").touch()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_inputs(text.format(tree), Path(output.format(tree)))
