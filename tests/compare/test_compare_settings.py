"""The command line: what is ours, what is Hydra's, and what is neither."""

import pytest

from e2net.arguments import help_text, read_settings
from e2net.compare.__main__ import main
from e2net.compare.settings import USAGE, CompareSettings


def test_own_keys_are_taken_out():
    found = read_settings(
        CompareSettings,
        ["encoder=a,b", "tokens=37", "output=x=y", "hydra/launcher=joblib", "~neck", "images=0", "cost=false"],
    )
    assert found.overrides == ("encoder=a,b", "hydra/launcher=joblib", "~neck")
    assert (found.tokens, found.output, found.images, found.cost) == (37, "x=y", 0, False)
    assert read_settings(CompareSettings, ["runs=[a, b]", "names=[A, 2]"]).names == ["A", 2]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["encoder=a,b", "frog"], "expected key=value, found 'frog'"),
        (["encoder=a,b", "images=many"], "images=many: expected int"),
        (["encoder=a,b", "images=true"], "images=true"),
        (["encoder=a,b", "images=-1"], "at least 0"),
        (["encoder=a,b", "resamples=10"], "at least 100"),
        (["encoder=a,b", "tokens=0"], "tokens=0"),
        (["encoder=a,b", "device=tpu"], "auto or cpu"),
        (["encoder=a,b", "images=1", "images=2"], "given twice"),
        (["encoder=a,b", "run_dir=x"], "run_dir: a comparison sets it itself"),
        (["encoder=a,b", "++run_dir=x"], "run_dir: a comparison sets it itself"),
        (["encoder=a,b", "~resume"], "resume: a comparison sets it itself"),
        (["encoder=a,b", "hydra.sweep.dir=x"], "sets it itself"),
        (["runs=[a,b]", "seed=0"], "seed=0 would change nothing"),
        (["runs=[a,b]", "tokens=3"], "tokens=3 would change nothing"),
        (["runs=a"], "runs=a: expected"),
        (["encoder=a"], "nothing to compare"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, words, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1
    assert shown.err.startswith("error: ") and words in shown.err


def test_runs_that_yaml_takes_for_something_else(capsys):
    """A folder of a multirun is called 0."""
    with pytest.raises(SystemExit):
        main(["runs=[0, null]"])
    assert "run 0: expected a run folder, found no such folder" in capsys.readouterr().err


def test_help_lists_every_setting(capsys):
    assert main(["--help"]) == 0 and main([]) == 2
    shown = capsys.readouterr().out
    for key in ("runs", "output", "tokens", "resamples", "hydra/launcher", "score=null"):
        assert key in shown
    assert max(map(len, help_text(CompareSettings, USAGE).splitlines())) <= 120
