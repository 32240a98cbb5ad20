"""What programs say in a terminal or in a log that is piped away: a message a line, and nothing that Lightning repeats.

Imports nothing heavy, as Hydra makes the handler before ``main``.
"""

import logging
import os
import warnings
from typing import TextIO

from tqdm import tqdm

_PLAIN = logging.Formatter("%(message)s")
_YELLOW, _RED, _RESET = "\x1b[33m", "\x1b[31m", "\x1b[0m"
# How messages and warnings of Lightning's begin that say nothing new, or nothing that is so here.
_NOISE = (
    *("GPU available: ", "TPU available: ", "HPU available: ", "💡 Tip: ", "Loading `train_dataloader` to estimate "),
    *("`Trainer.fit` stopped: `max_epochs=", "`Trainer.fit` stopped: `max_steps="),
)
_NOISY_WARNINGS = (
    r"The number of training batches \(\d+\) is smaller than the logging interval",  # metrics.csv has each epoch's
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


class Console(logging.StreamHandler[TextIO]):
    """Messages without time and module, which the log file has; a warning says that it is one.

    In a terminal a progress bar makes room for them, and the word has a colour unless ``NO_COLOR`` is set.

    Args:
        stream: where to; None: standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)

    def format(self, record: logging.LogRecord) -> str:
        text = _PLAIN.format(record)
        if record.levelno < logging.WARNING:
            return text
        word = f"{record.levelname.lower()}:"
        if has_colour(self.stream):
            word = f"{_YELLOW if record.levelno < logging.ERROR else _RED}{word}{_RESET}"
        return f"{word} {text}"

    def emit(self, record: logging.LogRecord) -> None:
        if not self.stream.isatty():
            super().emit(record)
            return
        with tqdm.external_write_mode(self.stream):
            super().emit(record)


def has_colour(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours, to somebody who wants them (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def quieten_lightning() -> None:
    """Leaves out what Lightning says of every run; and all else once, where this process has a log of its own."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
    if logging.getLogger().handlers:
        logging.getLogger("lightning").handlers.clear()
    for message in _NOISY_WARNINGS:
        warnings.filterwarnings("ignore", message)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE)
