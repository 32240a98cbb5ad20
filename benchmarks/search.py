"""How long a query of the nearest among very many vectors takes: exact, and with FAISS if it is there.

python benchmarks/search.py --vectors 1000000 --dimensions 384 --threads 2
"""

import argparse
import statistics
import time

import numpy as np
import torch

from e2net.features.index import ApproximateIndex, Index


def main() -> None:
    """Prints a line an index: seconds to build, milliseconds a query, and how many of the true nearest are found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--faiss", action="store_true", help="measure FAISS as well; its index takes minutes to build")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((given.vectors, given.dimensions), np.float32)
    queries = rng.standard_normal((given.queries, given.dimensions), np.float32)
    expected = None
    for kind in (Index, ApproximateIndex)[: 1 + given.faiss]:
        start = time.perf_counter()
        index = kind(vectors)
        built = time.perf_counter() - start
        index.query(queries[0], 10)
        times, found = [], []
        for query in queries:
            start = time.perf_counter()
            found.append(set(index.query(query, 10).rows.tolist()))
            times.append(1000 * (time.perf_counter() - start))
        expected = expected or found
        right = np.mean([len(a & b) / 10 for a, b in zip(found, expected, strict=True)])
        print(
            f"{kind.__name__}: built in {built:.1f} s, median {statistics.median(times):.1f} ms a query "
            f"({min(times):.1f} to {max(times):.1f}), {right:.0%} of the 10 nearest"
        )
        del index


if __name__ == "__main__":
    main()
