"""What Hydra is told about runs: each in a folder of its own, and one bad job of a sweep does not end the others.

Imports nothing heavy, as Hydra calls it before ``main``.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from e2net.files import no_space
from e2net.runs.folder import LOCK, is_first_process, new_folder

log = logging.getLogger(__name__)

_BY_TIME = "${now:"
# What the shell shows of a process that Ctrl-C or SIGTERM has ended.
_INTERRUPTED = 130


class FailedJobError(CompactHydraException):
    """One job of a sweep has failed, and has said why."""


class OwnFolder(Callback):
    """Before anything runs: makes the folder of a run or a sweep whose name has the time in it.

    Such a folder is meant to be new, but two processes of one second would share it: the name gets a number. Not by a
    resolver in the name, which --cfg would ask as well.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if is_first_process():  # further ones have been told the folder of the first
            _take(config, config.hydra.run)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _take(config, config.hydra.sweep)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN or job_return.status != JobStatus.FAILED:
            return
        error = job_return._return_value
        name = f"job {config.hydra.job.num} ({' '.join(job_return.overrides or [])})"
        if not isinstance(error, FailedJobError):
            log.error("%s failed", name, exc_info=error)
        failures.append(f"{name}: {' '.join(str(error).split()) or type(error).__name__}")


# Of the jobs that ran in this process.
failures: list[str] = []
# What this process has made by itself.
_made: list[Path] = []


def _take(config: DictConfig, section: DictConfig) -> None:
    written: Any = OmegaConf.to_container(section, resolve=False)
    if _BY_TIME not in str(written["dir"]):
        return
    HydraConfig.instance().set_config(config)  # what the name may ask for
    try:
        folder = new_folder(section.dir)
    except OSError as error:  # Hydra would make a warning of it
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    _made.append(folder)
    with read_write(config.hydra):
        section.dir = str(folder)


@contextlib.contextmanager
def one_of_many() -> Iterator[None]:
    """In a sweep, a job that ends the process with an error ends itself alone; the sweep's exit status is 1."""
    try:
        yield
    except SystemExit as stop:
        if HydraConfig.get().mode != RunMode.MULTIRUN or stop.code in (None, 0, _INTERRUPTED):
            raise
        cause = stop.__cause__ or stop.__context__
        raise FailedJobError(" ".join(str(cause).split())) from None


@contextlib.contextmanager
def full_disk_told(advice: str) -> Iterator[None]:
    """A disk that fills up ends the program with one line and status 1; whatever else goes wrong passes through.

    Args:
        advice: what to do then.
    """
    try:
        yield
    except OSError as error:
        told = no_space(error)
        if told is None:
            raise
        print(f"\nerror: {told}; {advice}", file=sys.stderr)
        raise SystemExit(1) from None


@contextlib.contextmanager
def ends_told(run_dir: str, *errors: type[Exception]) -> Iterator[None]:
    """A training that ends early says so in a line of its own, behind what progress bars have left.

    Args:
        run_dir: where it goes on, after an interruption (status 130) or when there is room again.
        errors: whose text is that line (status 1).
    """
    with one_of_many(), full_disk_told(f"make room, then continue with resume={run_dir}"):
        try:
            yield
        except KeyboardInterrupt:
            print(f"\ninterrupted; continue with resume={run_dir}", file=sys.stderr)
            raise SystemExit(130) from None
        except errors as error:
            print(f"\nerror: {error}", file=sys.stderr)
            raise SystemExit(1) from None


@contextlib.contextmanager
def failures_told() -> Iterator[None]:
    """In the end, which jobs of a sweep have failed, and why; and no empty folder of a run that was refused."""
    try:
        yield
    finally:
        for folder in _made:
            if folder.is_dir() and {file.name for file in folder.iterdir()} <= {LOCK}:
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
        if failures:
            print(f"{len(failures)} of the sweep's jobs failed:", file=sys.stderr)
            for line in failures:
                print(f"  {line}", file=sys.stderr)
