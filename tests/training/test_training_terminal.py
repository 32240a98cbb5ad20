"""What a training says: five lines, a line an epoch, the next command; bars and colours in terminals alone."""

import io
import logging
import os
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import rows_of, tiny_config, tiny_job

from e2net.arguments import print_anywhere
from e2net.evaluation.callbacks import Bars
from e2net.runs.console import Console, quieten_lightning
from e2net.training import prepare_training, train
from e2net.training.callbacks import EpochLines
from e2net.training.schedules import TRAIN_LOSS
from e2net.training.terminal import next_command, opening


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    def isatty(self):
        return True


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run, what it has logged and what it has printed."""
    folder, logged, printed = tmp_path_factory.mktemp("told") / "a run", io.StringIO(), io.StringIO()
    handler, logger = Console(logged), logging.getLogger("e2net")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", printed)
        patch.chdir(folder.parent)
        logger.addHandler(handler)
        before, _ = logger.level, logger.setLevel(logging.INFO)
        try:
            train(tiny_job(folder, "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2"))
        finally:
            logger.setLevel(before)
            logger.removeHandler(handler)
    return folder, logged.getvalue().splitlines(), printed.getvalue()


def test_five_lines_say_what_matters(told):
    folder, logged, _ = told
    assert [line.split()[0] for line in logged[:5]] == ["task", "data", "encoder", "device", "run"]
    task, data, encoder, device, place = (line[9:] for line in logged[:5])
    assert task == "camouflage; the checkpoint with the largest val/S is kept"
    training, validation = map(int, re.match(r"(\d+) training, (\d+) validation images; ", data).groups())
    assert training + validation == 12 and data.endswith("; test: 3 procedural; 32x32 pixels, 4 a batch")
    whole = re.fullmatch(
        r"random weights, tuning Full: (\d+) of (\d+) parameters train; decoder E2NetDecoder: (\d+) of \3 .* train",
        encoder,
    )
    assert whole and 0.99 < int(whole[1]) / int(whole[2]) < 1  # all but the token of masked patches
    assert (device, place) == ("cpu, precision 32-true", str(folder))


def found_in(line, pattern):
    match = re.search(pattern, line)
    assert match, line
    return match[1]


def test_a_line_an_epoch_has_its_mean_loss_and_its_own_validation(told):
    folder, logged, printed = told
    lines = [line for line in logged if line.startswith("epoch ")]
    assert [line.partition(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    losses = [float(row[TRAIN_LOSS]) for row in rows_of(folder) if TRAIN_LOSS in row]
    for line, loss in zip(lines, losses, strict=True):
        assert float(found_in(line, r"loss ([^,]+),")) == pytest.approx(loss, rel=1e-3)
    (scores,) = (row for row in rows_of(folder) if "val/S" in row)
    assert f"val/S {float(scores['val/S']):.3f}".replace(" 0.", " .") in lines[1] and "the best so far" in lines[1]
    assert "val/S" not in lines[0] + lines[2]
    assert all(float(found_in(line, r", ([\d.]+) s$")) < 60 for line in lines)
    assert "\r" not in printed and "\x1b" not in printed


def test_it_ends_with_the_next_command(told):
    _, _, printed = told
    *_, command, folder = printed.splitlines()
    assert command == "next: python -m e2net.predict 'ckpt=a run' input=PHOTOS output=OUT"
    assert folder == f"run folder: {told[0]}" and " procedural " in printed


def test_a_folder_elsewhere_is_named_in_full(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert f"ckpt={tmp_path}/run " in next_command(tmp_path / "run")


def test_a_resumed_run_says_so_and_one_without_validation_too(told, tmp_path):
    folder = told[0]
    config = tiny_config(tmp_path / "more", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2")
    config |= {"resume": str(folder)}
    config["trainer"]["max_epochs"] = 4
    job = prepare_training(config)
    assert job.step and opening(job)[4].endswith(
        f"more, from step {job.step} of {folder / 'checkpoints' / 'last.ckpt'}"
    )
    job = tiny_job(tmp_path / "unvalidated", "data.val_fraction=0", "tuning=frozen", "neck=norm")
    task, data, encoder, *_ = opening(job)
    assert "nothing is validated" in task and "12 training, 0 validation" in data
    assert "tuning Frozen: 0 of " in encoder and "; neck " in encoder


def test_other_processes_say_nothing(caplog):
    """But take part in the mean of all."""
    asked: list[int] = []
    other: Any = SimpleNamespace(is_global_zero=False)
    module: Any = SimpleNamespace(gathered_mean=lambda: asked.append(1) or torch.ones(2, 2))
    with caplog.at_level(logging.INFO, "e2net"):
        EpochLines().on_train_epoch_end(other, module)
    assert asked == [1] and not caplog.records
    bars = Bars()
    bars.setup(other, None, "fit")
    assert bars.is_disabled


@pytest.mark.parametrize("stream, enabled", [(Terminal(), True), (io.StringIO(), False)])
def test_bars_are_in_terminals_alone(monkeypatch, stream, enabled):
    monkeypatch.setattr("sys.stdout", stream)
    bars = Bars()
    first: Any = SimpleNamespace(is_global_zero=True)
    bars.setup(first, None, "fit")
    assert bars.is_enabled == enabled
    for begin in (bars.init_train_tqdm, bars.init_test_tqdm):
        with begin() as bar:
            assert not bar.leave and bar.disable != enabled


@pytest.mark.parametrize(
    "stream, environment, coloured",
    [
        (Terminal, {}, True),
        (Terminal, {"NO_COLOR": "1"}, False),
        (Terminal, {"NO_COLOR": ""}, True),  # as no-color.org has it
        (Terminal, {"TERM": "dumb"}, False),
        (io.StringIO, {}, False),
    ],
)
def test_colour_is_in_terminals_that_want_it(monkeypatch, stream, environment, coloured):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    said = stream()
    console = Console(said)
    for level in (logging.INFO, logging.WARNING, logging.ERROR):
        console.emit(logging.LogRecord("e2net.x", level, "x.py", 1, "%s pictures", (3,), None))
    assert ("\x1b" in said.getvalue()) == coloured
    plain = re.sub(r"\x1b\[\d+m", "", said.getvalue())
    assert plain.splitlines() == ["3 pictures", "warning: 3 pictures", "error: 3 pictures"]


def test_steps_are_told_where_they_end_a_training(caplog):
    place = SimpleNamespace(
        epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=4)))
    )
    trainer: Any = SimpleNamespace(
        is_global_zero=True, max_steps=700, max_epochs=1000, current_epoch=3, global_step=16, num_training_batches=4,
        fit_loop=place,
    )  # fmt: skip
    lines, module = EpochLines(), SimpleNamespace(gathered_mean=lambda: torch.ones(2, 2))
    lines.on_train_start()
    with caplog.at_level(logging.INFO, "e2net"):
        lines.on_train_epoch_end(trainer, module)
    assert caplog.messages[0].startswith("epoch 4, step 16/700: loss 1, ")


@pytest.mark.parametrize("stream, found", [(Terminal(), None), (io.StringIO(), "1")])
def test_other_libraries_have_bars_in_terminals_alone_too(monkeypatch, stream, found):
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setattr("sys.stderr", stream)
    print_anywhere()
    assert os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None) == found


def test_lightning_says_what_is_news_once(caplog):
    quieten_lightning()
    lightning = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with caplog.at_level(logging.INFO, lightning.name):  # whatever other tests have set
        lightning.info("GPU available: False, used: False")
        lightning.info("Time limit reached.")
    assert [record.getMessage() for record in caplog.records] == ["Time limit reached."]
    assert not logging.getLogger("lightning").handlers
