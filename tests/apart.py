"""Work in processes of its own, which may be killed.

Forked from a server that has imported everything and has no threads: forked from here, a process would wait for ever
for a lock that a thread of some earlier test held.
"""

import multiprocessing
import os

import cloudpickle

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["e2net.training.run", "e2net.evaluation.report", "tiny"])


def start(work):
    """Begins work(), in one thread and without drawing curves, which takes as long as all the rest.

    Returns:
        The process; its exit code is 0, what os._exit was given, or minus the signal that ended it.
    """
    process = CONTEXT.Process(target=_run, args=(cloudpickle.dumps(work),))
    process.start()
    return process


def _run(work):
    import torch  # noqa: PLC0415

    import e2net.evaluation.report  # noqa: PLC0415

    torch.set_num_threads(1)
    # As in a program that a user starts; from here it would be a server's, which imports everything for each reader.
    multiprocessing.set_start_method("fork", force=True)
    e2net.evaluation.report.curve_figure = lambda curves: b"a picture"
    cloudpickle.loads(work)()
    os._exit(0)
