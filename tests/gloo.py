"""Two processes on a CPU that reach each other by gloo."""

import multiprocessing

import torch
import torch.distributed as dist


def in_two(work, folder):
    """What work(rank) gives back in each of two processes, by rank.

    Args:
        work: from a rank to tensors, numbers, lists and dicts of them.
        folder: an empty one.
    """
    # Forked: to import torch anew would take most of the time.
    context = multiprocessing.get_context("fork")
    pair = [context.Process(target=_meet, args=(work, rank, folder)) for rank in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(120)
    assert [process.exitcode for process in pair] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _meet(work, rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(work(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()
