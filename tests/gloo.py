"""Two processes on a CPU that reach each other by gloo."""

import os
import socket

import torch
import torch.distributed as dist
from apart import start


def in_two(work, folder):
    """What work(rank) gives back in each of two processes, by rank.

    Args:
        work: from a rank to tensors, numbers, texts, lists and dicts of them.
        folder: an empty one.
    """
    _both(lambda rank: _meet(work, rank, folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _meet(work, rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(work(rank), folder / f"{rank}.pt")
    # No further: to take the group down can wait for ever for the other, which has gone. The process ends after this.
    dist.barrier()


def on_two_devices(work):
    """Has work() done by two processes that Lightning takes for those of two devices, as if it had started them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    _both(lambda rank: _as_device(work, rank, port))


def _as_device(work, rank, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank)}
    work()


def _both(work):
    pair = [start(lambda rank=rank: work(rank)) for rank in range(2)]
    for process in pair:
        process.join(300)
    assert [process.exitcode for process in pair] == [0, 0], [process.errors.read() for process in pair]
