"""How long a query of the nearest among very many vectors takes: exact, and with FAISS if it is asked for.

python benchmarks/search.py --vectors 1000000 --dimensions 384 --threads 2

Beside the time by the clock stands that of the processor, which other programs on a busy machine change little, and the
plain float32 product of all vectors with the query, for comparison.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from e2net.features.index import ApproximateIndex, Index, unit

TOP = 10


def measure(name: str, queries: np.ndarray, query: Callable[[np.ndarray], set[int]], built: float) -> list[set[int]]:
    """Prints the milliseconds of each query, and returns what was found."""
    query(queries[0])
    clock, processor, found = [], [], []
    for one in queries:
        start = time.perf_counter(), time.process_time()
        found.append(query(one))
        clock.append(1000 * (time.perf_counter() - start[0]))
        processor.append(1000 * (time.process_time() - start[1]))
    print(
        f"{name}: built in {built:.0f} s, a query {statistics.median(clock):.1f} ms by the clock ({min(clock):.1f} to "
        f"{max(clock):.1f}), {statistics.median(processor):.1f} ms of all threads together",
        flush=True,
    )
    return found


def main() -> None:
    """Prints a line a way: seconds to build, milliseconds a query; and how many of the true nearest FAISS finds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--groups", type=int, default=0, help="vectors around so many centres, not anywhere")
    parser.add_argument("--faiss", action="store_true", help="measure FAISS as well; its index takes minutes to build")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((given.vectors + given.queries, given.dimensions), np.float32)
    if given.groups:
        centres = rng.standard_normal((given.groups, given.dimensions), np.float32)
        vectors += 2 * centres[rng.integers(0, given.groups, len(vectors))]
    queries = unit(vectors[given.vectors :])
    start = time.perf_counter()
    index = Index(vectors[: given.vectors])
    built = time.perf_counter() - start
    del vectors

    def plain(query: np.ndarray) -> set[int]:
        return set((index.vectors @ torch.from_numpy(query)).topk(TOP).indices.tolist())

    measure("float32 product", queries, plain, 0)
    expected = measure("Index, exact", queries, lambda query: set(index.query(query, TOP).rows.tolist()), built)
    if given.faiss:
        import faiss  # noqa: PLC0415 - an extra

        faiss.omp_set_num_threads(given.threads)
        start = time.perf_counter()
        cells = ApproximateIndex(index.vectors.numpy())
        built = time.perf_counter() - start
        found = measure("FAISS", queries, lambda query: set(cells.query(query, TOP).rows.tolist()), built)
        right = np.mean([len(one & other) / TOP for one, other in zip(found, expected, strict=True)])
        print(f"FAISS finds {right:.0%} of the {TOP} nearest")


if __name__ == "__main__":
    main()
