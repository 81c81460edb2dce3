"""Exact nearest neighbours by Euclidean distance, without ever holding all distances.

How: one pass of float32 matrix products over cache-sized tiles of the index keeps only the least score of each small
group of index rows. A bound on the rounding of those products tells which groups can hold a neighbour; the rows of
these few groups are measured again in float64, and that order decides. So the result depends on the values alone:
not on tiles, threads or the device.

Shapes: queries [Q, E], index [N, E], neighbours [Q, k].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from guie_core import GuieError

Matrix = NDArray[np.floating[Any]] | NDArray[np.integer[Any]] | Tensor

UNIT = 2.0**-24  # rounding unit of float32
BLOCK = 1 << 17  # candidates measured at once; 34 MB of float32 at E = 64
HELD = 1 << 20  # measured candidates held before they are reduced to k a query
CHUNK = 512  # queries at a time on a CPU


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest index rows of each query, nearest first.

    Attributes:
        indices: int64 [Q, k], positions in the index; -1 where a query has fewer than k.
        distances: float32 [Q, k], Euclidean; inf where `indices` is -1.
    """

    indices: NDArray[np.int64]
    distances: NDArray[np.float32]


def search(
    queries: Matrix,
    index: Matrix,
    k: int,
    *,
    query_ids: ArrayLike | None = None,
    index_ids: ArrayLike | None = None,
    device: str | torch.device = "cpu",
    chunk: int | None = None,
    tile: int | None = None,
) -> Neighbours:
    """The `k` nearest rows of `index` for each query, exactly, ordered by (distance, index id, position).

    Distances are compared in float64, as the square root of summed squared differences; rows that are equally far
    (duplicates, say) stand in the order of their ids. What comes back is rounded to float32.

    Memory beside the arguments: a float32 copy of the index, and below 300 MB a thread whatever Q and N are.

    Args:
        queries: [Q, E], numpy or torch, floats or integers.
        index: [N, E].
        k: how many; where the index has fewer, the rest is -1.
        query_ids: [Q] numbers or texts. Index rows with the same id as the query are left out: this is how an image is
            kept from finding itself. None leaves out nothing.
        index_ids: [N], of the same type; None stands for the positions 0..N-1.
        device: where the matrix products run.
        chunk: queries at a time; tile: index rows at a time. They change speed and memory only.

    Raises:
        GuieError: a value that is not finite (the row is named), other shapes, ids that don't fit, k below 1.
    """
    x, y = _matrix(queries, "queries"), _matrix(index, "index")
    if x.shape[1] != y.shape[1]:
        raise GuieError(
            f"the queries have {x.shape[1]} dimensions and the index has {y.shape[1]}; both must come from one model"
        )
    if k < 1:
        raise GuieError(f"k is {k}; at least one neighbour must be asked for")
    rank, own = _ranks(query_ids, index_ids, len(x), len(y))
    indices = np.full((len(x), k), -1, np.int64)
    distances = np.full((len(x), k), np.inf, np.float32)
    if not len(x) or not len(y):
        return Neighbours(indices, distances)

    place = torch.device(device)
    gallery = _Gallery(y, x, k, place, tile)
    counts = _masked(rank, own, len(x))

    def answer(part: slice) -> None:
        with torch.inference_mode(), torch.autocast(place.type, enabled=False):  # settings of one thread
            nearest = _Nearest(x[part], y, k, rank, own[part])
            for q, j in gallery.candidates(x[part], k + counts[part]):
                nearest.add(q, j)
            nearest.write(indices[part], distances[part])

    threads = torch.get_num_threads() if place.type == "cpu" else 1
    size = chunk or min(gallery.chunk, max(-(-len(x) // threads), 32))
    parts = [slice(start, start + size) for start in range(0, len(x), size)]
    with _full_precision():
        _for_each(answer, parts, min(threads, len(parts)))
    return Neighbours(indices, distances)


class _Gallery:
    """The index in float32, laid out for one matrix product a tile: rows (y, |y|^2) against columns (-2 x, 1).

    A score is |x - y|^2 - |x|^2 of the centred and scaled values. The index is padded with rows of infinite score to
    whole groups of `width` rows.
    """

    def __init__(self, index: NDArray[Any], queries: NDArray[Any], k: int, device: torch.device, tile: int | None):
        rows, dimension = index.shape
        self.device = device
        self.rows = rows
        self.width = _width(rows, k)
        self.groups = -(-rows // self.width)
        # 512 x 512 scores are 1 MB, the cache of a core
        wanted = tile or (512 if device.type == "cpu" else 65536)
        self.tile = max(wanted // self.width, 1)  # in groups
        self.chunk = int(min(max((1 << 23) // self.groups, 32), CHUNK if device.type == "cpu" else 4096))

        # Centred and scaled to -1..1: what is rounded is small, and nothing overflows
        self.centre = index.mean(axis=0, dtype=np.float64)
        largest = max(_largest(queries), _largest(index))
        self.scale = 2.0 ** -math.ceil(math.log2(2 * largest)) if largest > 0 else 1.0
        table = np.zeros((self.groups * self.width, dimension + 1), np.float32)
        table[rows:, -1] = np.inf
        norms = self._place(index, table[:rows, :-1])
        table[:rows, -1] = norms
        self.norm = math.sqrt(norms.max())
        self.table = torch.from_numpy(table).to(device)

    def _place(self, values: NDArray[Any], out: NDArray[np.float32]) -> NDArray[np.float64]:
        """Write centred, scaled `values` to `out`; returns the squared norms of what was written."""
        norms = np.empty(len(values))
        for part in _blocks(values):
            out[part] = (values[part] - self.centre) * self.scale
            norms[part] = np.square(out[part], dtype=np.float64).sum(1)
        return norms

    def candidates(
        self, queries: NDArray[Any], needed: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Pairs (query, index row) among which are the `needed` nearest of each query and all that tie with them."""
        columns = np.ones((len(queries), self.table.shape[1]), np.float32)
        norms = np.sqrt(self._place(queries, columns[:, :-1]))
        columns[:, :-1] *= -2  # exact
        x = torch.from_numpy(columns).to(self.device)
        least = self._least(x)  # [Q, G]

        # If `needed` groups have a score of at most t, so have `needed` rows. Their true scores are at most t + error,
        # hence those of the neighbours too, hence the neighbours' computed scores are at most t + 2 error.
        depth = torch.from_numpy(needed).to(self.device)
        best = least.topk(min(int(needed.max()), self.groups), dim=1, largest=False).values
        limit = best.gather(1, depth.clamp(max=best.shape[1])[:, None] - 1)[:, 0]
        limit[depth > self.groups] = torch.inf
        limit += torch.from_numpy((2 * self._error(norms)).astype(np.float32)).to(self.device)

        query, group = (least <= limit[:, None]).nonzero(as_tuple=True)
        within = torch.arange(self.width, device=self.device)
        for part in range(0, len(query), max(BLOCK // self.width, 1)):
            q, g = query[part : part + BLOCK // self.width], group[part : part + BLOCK // self.width]
            rows = self.table.view(self.groups, -1).index_select(0, g).view(len(g), self.width, -1)
            scores = torch.bmm(rows, x.index_select(0, q)[:, :, None])[:, :, 0]  # [P, width]
            j = g[:, None] * self.width + within
            keep = (scores <= limit[q][:, None]) & (j < self.rows)
            pair, _ = keep.nonzero(as_tuple=True)
            yield q[pair].cpu().numpy(), j[keep].cpu().numpy()

    def _least(self, x: Tensor) -> Tensor:
        """[Q, G]: the least score of each group for the columns `x` [Q, E + 1]."""
        least = torch.empty(self.groups, len(x), device=self.device)
        scores = torch.empty(self.tile * self.width * len(x), device=self.device)
        for start in range(0, self.groups, self.tile):
            count = min(self.tile, self.groups - start)
            rows = self.table[start * self.width : (start + count) * self.width]
            tile = scores[: len(rows) * len(x)].view(len(rows), len(x))
            torch.mm(rows, x.T, out=tile)
            torch.amin(tile.view(count, self.width, len(x)), dim=1, out=least[start : start + count])
        return least.T.contiguous()

    def _error(self, norms: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far a computed score can be from the true one, for queries of these norms.

        A float32 sum of n products is off by at most n u / (1 - n u) times the sum of their magnitudes, in any order
        (Higham, Accuracy and Stability of Numerical Algorithms, 2002, eq. 3.5); here they sum to 2 |x| |y| + |y|^2.
        Rounding y's norm adds u |y|^2, placing x and y adds about 2 u (|x| + |y|)^2, and the last term covers numbers
        too small for float32. The constants are generous, since they only lengthen the list of candidates.
        """
        terms = self.table.shape[1] + 8
        magnitude = 2 * norms * self.norm + self.norm**2
        return 1.1 * UNIT * (terms * magnitude + 3 * (norms + self.norm) ** 2) + terms * 2.0**-120


class _Nearest:
    """The k nearest of the candidates of some queries, by float64 distance, then rank, then position."""

    def __init__(
        self,
        queries: NDArray[Any],
        index: NDArray[Any],
        k: int,
        rank: NDArray[np.int64] | None,
        own: NDArray[np.int64],
    ) -> None:
        self.queries, self.index, self.k, self.rank, self.own = queries, index, k, rank, own
        self.held: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
        self.count = 0

    def add(self, q: NDArray[np.int64], j: NDArray[np.int64]) -> None:
        """Measure the pairs (query q, index row j)."""
        other = self.own[q] != (j if self.rank is None else self.rank[j])
        q, j = q[other], j[other]
        squared = np.empty(len(q))
        step = max(BLOCK * 16 // self.index.shape[1], 1)
        for start in range(0, len(q), step):
            part = slice(start, start + step)
            difference = np.subtract(self.queries[q[part]], self.index[j[part]], dtype=np.float64)
            # a plain sum over the last axis: its order of additions depends on E alone
            squared[part] = np.square(difference, out=difference).sum(axis=1)
        self.held.append((q, j, squared))
        self.count += len(q)
        if self.count > HELD:
            self._reduce()

    def _reduce(self) -> NDArray[np.int64]:
        """Keep the first k of each query; returns their places 0..k-1."""
        q, j, squared = (np.concatenate(parts) for parts in zip(*self.held, strict=True))
        keys = (j, squared, q) if self.rank is None else (j, self.rank[j], squared, q)
        order = np.lexsort(keys)
        q = q[order]
        place = np.arange(len(q)) - np.searchsorted(q, q)
        first = place < self.k
        order = order[first]
        self.held = [(q[first], j[order], squared[order])]
        self.count = len(order)
        return place[first]

    def write(self, indices: NDArray[np.int64], distances: NDArray[np.float32]) -> None:
        """Fill [Q, k] arrays with what was found."""
        place = self._reduce()
        ((q, j, squared),) = self.held
        indices[q, place] = j
        distances[q, place] = np.sqrt(squared)


def _matrix(values: Matrix, name: str) -> NDArray[Any]:
    """`values` as a contiguous float32 or float64 array [N, E] of finite numbers."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values if values.dtype == torch.float64 else values.float()).numpy()
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[1] == 0:
        raise GuieError(f"{name} must be a matrix [rows, dimensions], not of shape {list(array.shape)}")
    if array.dtype.kind not in "fiu":
        raise GuieError(f"{name} must be numbers, not {array.dtype}")
    wide = array.dtype.kind != "f" or array.dtype.itemsize > 4
    array = np.ascontiguousarray(array, np.float64 if wide else np.float32)
    largest = _largest(array)
    if not math.isfinite(largest):
        row, column = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise GuieError(
            f"row {row} of the {name} holds {array[row, column]} in dimension {column}: "
            "an embedding that is not finite has no neighbours. Look for an overflow in the model, or a broken image"
        )
    if largest > 1e100:
        raise GuieError(f"the {name} hold numbers above 1e100, whose squared distances overflow")
    return array


def _ranks(
    query_ids: ArrayLike | None, index_ids: ArrayLike | None, queries: int, rows: int
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    """The place of each index row's id in the order of ids (None: its position), and that of each query's id or -1."""
    nobody = np.full(queries, -1, np.int64)
    asked = None if query_ids is None else _ids(query_ids, queries, "query_ids")
    if index_ids is None:
        if asked is None:
            return None, nobody
        if asked.dtype.kind not in "iu":
            raise GuieError("query_ids are texts and index_ids are not given; give both")
        return None, np.where((asked >= 0) & (asked < rows), asked, -1).astype(np.int64)
    ids = _ids(index_ids, rows, "index_ids")
    unique, rank = np.unique(ids, return_inverse=True)
    if asked is None or not rows:
        return rank, nobody
    if asked.dtype.kind != unique.dtype.kind:
        raise GuieError(
            f"query_ids ({asked.dtype}) and index_ids ({ids.dtype}) cannot be compared; use one type for both"
        )
    place = np.searchsorted(unique, asked).clip(max=len(unique) - 1)
    return rank, np.where(unique[place] == asked, place, -1)


def _ids(values: ArrayLike, rows: int, name: str) -> NDArray[Any]:
    ids = np.asarray(values)
    if ids.shape != (rows,):
        raise GuieError(f"{name} has shape {list(ids.shape)}; there are {rows} rows, and each needs one id")
    if ids.dtype.kind == "O":
        ids = ids.astype(str)
    if ids.dtype.kind not in "iuU":
        raise GuieError(f"{name} must be whole numbers or texts, not {ids.dtype}")
    return ids


def _masked(rank: NDArray[np.int64] | None, own: NDArray[np.int64], queries: int) -> NDArray[np.int64]:
    """How many index rows have the query's own id [Q]."""
    if rank is None:
        return (own >= 0).astype(np.int64)
    counts = np.append(np.bincount(rank), 0)  # own is -1 for queries that are not in the index
    return counts[own]


def _largest(values: NDArray[Any]) -> float:
    """The largest magnitude; not finite if one of the values isn't."""
    return max(float(values.max(initial=0)), -float(values.min(initial=0)))


def thread_bytes(queries: int, rows: int, dimension: int, k: int) -> int:
    """About how many bytes a thread of a `search` on the CPU holds, which answers so many queries of so many indexed
    rows: the groups with the k nearest of a chunk of them, and differences in float64 beside the rows they are of."""
    candidates = min(min(queries, CHUNK) * (k + 1) * _width(rows, k), BLOCK)
    differences = min(candidates * dimension, BLOCK * 16)
    return candidates * dimension * 4 + differences * (8 + 4 + 4)


def _width(rows: int, k: int) -> int:
    """Rows of the index in a group: wide ones make the list of minima short, narrow ones are soon measured."""
    return 1 << round(math.log2(min(max(math.sqrt(rows / k) / 4, 4), 32)))


def _blocks(values: NDArray[Any]) -> Iterator[slice]:
    """Slices of rows that hold about half a megabyte in float64."""
    step = max((1 << 16) // values.shape[1], 1)
    for start in range(0, len(values), step):
        yield slice(start, start + step)


def _for_each(work: Callable[[slice], None], parts: list[slice], threads: int) -> None:
    """Do the parts in threads of one core each, which need not wait for one another as the threads of an operation do.

    torch's own number of threads is 1 meanwhile, for the whole program.
    """
    if threads == 1:
        for part in parts:
            work(part)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            try:
                for _ in pool.map(work, parts):
                    pass
            except BaseException:  # Ctrl-C too: what has not begun need not be done
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(before)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 are computed in float32, whatever the program has set: the error bound relies on it."""
    backends: list[Any] = [getattr(getattr(torch.backends, name), "matmul", None) for name in ("cuda", "mkldnn")]
    new = all(hasattr(backend, "fp32_precision") for backend in backends)  # torch 2.9
    before = [backend.fp32_precision for backend in backends] if new else [torch.get_float32_matmul_precision()]
    if new:
        for backend in backends:
            backend.fp32_precision = "ieee"
    else:
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if new:
            for backend, precision in zip(backends, before, strict=True):
                backend.fp32_precision = precision
        else:
            torch.set_float32_matmul_precision(before[0])
