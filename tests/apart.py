"""Work and programs in processes of their own, which may be killed.

Forked from a server that has imported everything and has no threads: forked from here, a process would wait for ever
for a lock that a thread of some earlier test held. That takes seconds less than to start Python.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

import cloudpickle

CONTEXT = multiprocessing.get_context("forkserver")
# Also what they import when they are at work, the encoder of nearly all tests and the default logger.
CONTEXT.set_forkserver_preload([
    "e2net.training.run", "e2net.evaluation.report", "e2net.adapt.run", "tiny",
    "transformers.models.dinov3_vit.modeling_dinov3_vit", "torch.utils.tensorboard",
])  # fmt: skip


def start(work):
    """Begins work(), in one thread and without drawing curves, which takes as long as all the rest.

    Returns:
        The process; its exit code is 0, what os._exit was given, or minus the signal that ended it. Its ``errors``
        is a file with the traceback of an exception.
    """
    errors = tempfile.NamedTemporaryFile("r", encoding="utf-8")  # noqa: SIM115 - it goes with the process
    process = CONTEXT.Process(target=_run, args=(cloudpickle.dumps(work), errors.name))
    process.start()
    process.errors = errors  # type: ignore[attr-defined]  # kept with the process
    return process


def _run(work, errors):
    import torch  # noqa: PLC0415

    import e2net.evaluation.report  # noqa: PLC0415

    torch.set_num_threads(1)
    # As in a program that a user starts; from here it would be a server's, which imports everything for each reader.
    multiprocessing.set_start_method("fork", force=True)
    e2net.evaluation.report.curve_figure = lambda curves: b"a picture"
    e2net.evaluation.report.calibration_figure = lambda calibrations: b"a picture"
    try:
        cloudpickle.loads(work)()
    except BaseException:
        # The server's own stream is that of the test that started it, which nobody reads now.
        Path(errors).write_text(traceback.format_exc(), encoding="utf-8")
        raise
    os._exit(0)


class Program:
    """A program of this repository as it runs from a command line, but for its imports and its start.

    Args:
        program: a file such as train.py, or a module such as e2net.predict.
        arguments: of the command line.
        cwd: where it runs.
        environment: variables besides those of here.
    """

    def __init__(self, program, *arguments, cwd, **environment):
        self._streams = [tempfile.NamedTemporaryFile("r", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        places = [stream.name for stream in self._streams]
        environment = {**os.environ, **environment}
        self._process = start(lambda: _program(str(program), arguments, str(cwd), environment, places))

    @property
    def status(self):
        """Of its end; None before it."""
        return self._process.exitcode

    def send(self, signal):
        """Has it meet a signal."""
        os.kill(self._process.pid, signal)

    def finish(self):
        """Waits for its end: exit status, output, errors."""
        self._process.join(300)
        assert self._process.exitcode is not None, "it has not ended"
        return self._process.exitcode, *(stream.read() for stream in self._streams)


def _program(program, arguments, cwd, environment, places):
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, place in enumerate([os.devnull, *places]):
        os.dup2(os.open(place, os.O_RDWR | os.O_APPEND), number)
    sys.argv = [program, *arguments]
    try:
        if program.endswith(".py"):
            sys.path.insert(0, str(Path(program).parent))
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
