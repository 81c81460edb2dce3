"""Exact nearest neighbours: guie beside faiss's flat index, and beside the matrix product that both need.

    python benchmarks/search.py [--queries 5000] [--index 200000] [--dimension 64] [--k 5] [--threads 2] [--rounds 3]

All three run in turn within each round, on the same random values, and the best round counts; "processor" is the time
that all threads together kept a core busy, which says more than the clock where a machine is shared.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("queries", 5000), ("index", 200_000), ("dimension", 64), ("k", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before the libraries read it

    import faiss
    import numpy as np
    import torch

    from guie_train.retrieval import search

    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((options.queries, options.dimension), dtype=np.float32)
    index = rng.standard_normal((options.index, options.dimension), dtype=np.float32)
    results: dict[str, np.ndarray] = {}

    def products(columns: torch.Tensor) -> None:
        space = torch.empty(512 * len(columns))
        for rows in torch.from_numpy(index).split(512):
            torch.mm(rows, columns.T, out=space[: len(rows) * len(columns)].view(len(rows), len(columns)))

    def product() -> None:
        # in cache-sized tiles, by threads of one core each: on two cores faster than torch's own threads
        torch.set_num_threads(1)
        with ThreadPoolExecutor(options.threads) as pool:
            list(pool.map(products, torch.from_numpy(queries).split(512)))
        torch.set_num_threads(options.threads)

    def guie() -> None:
        results["guie"] = search(queries, index, options.k).indices

    def flat() -> None:
        found = faiss.IndexFlatL2(options.dimension)
        found.add(index)
        results["faiss"] = found.search(queries, options.k)[1]

    works: dict[str, Callable[[], None]] = {
        "matrix product alone": product,
        "guie search": guie,
        "faiss IndexFlatL2": flat,
    }
    clock, processor = ({name: float("inf") for name in works} for _ in range(2))
    for _ in range(options.rounds):
        for name, work in works.items():
            began, busy = time.perf_counter(), time.process_time()
            work()
            clock[name] = min(clock[name], time.perf_counter() - began)
            processor[name] = min(processor[name], time.process_time() - busy)

    print(f"$ python {' '.join(sys.argv)}")
    print(f"{options.queries:,} queries x {options.index:,} rows x {options.dimension}, k {options.k}, float32")
    print(f"{options.threads} threads, {platform.machine()}, torch {torch.__version__}, faiss {faiss.__version__}")
    print(f"{'':22}{'seconds':>9}{'ratio':>7}{'processor s':>13}{'ratio':>7}{'queries/s':>11}")
    base = "matrix product alone"
    for name in works:
        print(
            f"{name:22}{clock[name]:9.2f}{clock[name] / clock[base]:7.2f}{processor[name]:13.2f}"
            f"{processor[name] / processor[base]:7.2f}{options.queries / clock[name]:11,.0f}"
        )
    same = (results["guie"] == results["faiss"]).all(axis=1).sum()
    print(f"the same neighbours in the same order for {same:,} of {options.queries:,} queries")


if __name__ == "__main__":
    main()
