"""Exactness, against a float64 computation of all distances and against faiss."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from guie_core import GuieError
from guie_train.retrieval import Neighbours, search


def oracle(
    queries: NDArray[Any], index: NDArray[Any], k: int, query_ids: Any = None, index_ids: Any = None
) -> Neighbours:
    """All distances in float64, then a plain sort of (distance, id, position) for each query."""
    ids = list(range(len(index))) if index_ids is None else list(index_ids)
    indices = np.full((len(queries), k), -1)
    distances = np.full((len(queries), k), np.inf, np.float32)
    for q, query in enumerate(np.asarray(queries, np.float64)):
        squared = ((np.asarray(index, np.float64) - query) ** 2).sum(1)
        found = sorted(
            (d, name, j)
            for j, (d, name) in enumerate(zip(squared, ids, strict=True))
            if query_ids is None or name != query_ids[q]
        )[:k]
        for rank, (d, _, j) in enumerate(found):
            indices[q, rank], distances[q, rank] = j, np.sqrt(d)
    return Neighbours(indices, distances)


def assert_same(found: Neighbours, expected: Neighbours) -> None:
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.distances, expected.distances)
    assert found.indices.dtype == np.int64
    assert found.distances.dtype == np.float32


def points(rng: np.random.Generator, kind: str, rows: int, dimension: int) -> NDArray[np.float32]:
    values: NDArray[Any]
    if kind == "normal":
        values = rng.standard_normal((rows, dimension))
    elif kind == "grid":  # most distances tie
        values = rng.integers(0, 3, (rows, dimension))
    elif kind == "duplicates":
        values = rng.standard_normal((max(rows // 20, 1), dimension))[rng.integers(0, max(rows // 20, 1), rows)]
    elif kind == "collapsed":
        values = np.ones((rows, dimension)) * 0.3
    elif kind == "far":  # a small cloud far from the origin, where float32 products lose all its digits
        values = 1000 + 1e-3 * rng.standard_normal((rows, dimension))
    else:  # magnitudes from 1e-30 to 1e30
        values = rng.standard_normal((rows, dimension)) * 10.0 ** rng.integers(-30, 31, (rows, 1))
    return values.astype(np.float32)


KINDS = ["normal", "grid", "duplicates", "collapsed", "far", "magnitudes"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("queries", "rows", "dimension", "k"), [(40, 1500, 8, 5), (7, 333, 64, 40), (3, 2000, 1, 1)])
def test_agrees_with_all_distances_in_float64(kind: str, queries: int, rows: int, dimension: int, k: int) -> None:
    rng = np.random.default_rng(0)
    index = points(rng, kind, rows, dimension)
    asked = np.concatenate([points(rng, kind, queries - 2, dimension), index[:2]])
    assert_same(search(asked, index, k), oracle(asked, index, k))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_agrees_with_all_distances_whatever_the_sizes_ties_and_ids(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kind = data.draw(st.sampled_from(KINDS))
    dimension, rows, queries = (data.draw(st.integers(1, n)) for n in (9, 120, 12))
    index, asked = points(rng, kind, rows, dimension), points(rng, kind, queries, dimension)
    index_ids = rng.integers(0, data.draw(st.integers(1, 200)), rows)  # ids repeat
    query_ids = rng.integers(0, 200, queries)
    if data.draw(st.booleans()):  # queries out of the index itself
        rows_asked = rng.integers(0, rows, queries)
        asked, query_ids = index[rows_asked], index_ids[rows_asked]
    k = data.draw(st.integers(1, 130))
    found = search(asked, index, k, query_ids=query_ids, index_ids=index_ids, chunk=data.draw(st.integers(1, 15)))
    assert_same(found, oracle(asked, index, k, query_ids, index_ids))


def test_a_query_is_masked_by_its_id_even_when_a_duplicate_comes_first() -> None:
    index = np.zeros((4, 3), np.float32)
    index[3] = 1
    found = search(index, index, 2, query_ids=np.arange(4))
    assert found.indices.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


def test_ties_stand_in_the_order_of_ids_then_positions() -> None:
    index = np.zeros((5, 2), np.float32)
    ids = np.array(["d", "b", "a", "b", "c"])
    found = search(index[:2], index, 5, query_ids=np.array(["c", "zzz"]), index_ids=ids)
    assert found.indices.tolist() == [[2, 1, 3, 0, -1], [2, 1, 3, 4, 0]]
    assert found.distances[0].tolist() == [0, 0, 0, 0, np.inf]


def test_ties_at_the_last_rank_reach_across_the_whole_index() -> None:
    # 3,000 rows at distance 1, where only those of the lowest ids belong to the answer
    rng = np.random.default_rng(0)
    index = np.zeros((3000, 16), np.float32)
    index[np.arange(3000), rng.integers(0, 16, 3000)] = rng.choice([-1, 1], 3000)
    ids = rng.permutation(3000)
    found = search(np.zeros((1, 16), np.float32), index, 5, index_ids=ids)
    assert ids[found.indices[0]].tolist() == [0, 1, 2, 3, 4]


def test_agrees_with_faiss() -> None:
    rng = np.random.default_rng(1)
    index, asked = (rng.standard_normal((n, 64)).astype(np.float32) for n in (20_000, 200))
    flat = faiss.IndexFlatL2(64)
    flat.add(index)
    squared, indices = flat.search(asked, 5)
    found = search(asked, index, 5)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, np.sqrt(squared), rtol=1e-5)


def test_result_does_not_depend_on_chunks_tiles_or_threads() -> None:
    rng = np.random.default_rng(2)
    index = points(rng, "duplicates", 5000, 24)
    index[2500:] = points(rng, "normal", 2500, 24)
    asked = index[rng.permutation(5000)[:300]]
    first = search(asked, index, 7, query_ids=np.arange(300))
    for chunk, tile in [(1, 64), (17, 100), (300, 5000), (1000, 1)]:
        assert_same(search(asked, index, 7, query_ids=np.arange(300), chunk=chunk, tile=tile), first)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert_same(search(asked, index, 7, query_ids=np.arange(300)), first)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_result_does_not_depend_on_the_device() -> None:
    rng = np.random.default_rng(2)
    for kind in KINDS:
        index, asked = points(rng, kind, 5000, 64), points(rng, kind, 100, 64)
        assert_same(search(asked, index, 5, device="cuda"), search(asked, index, 5))


def test_products_are_in_full_precision_whatever_the_program_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    index, asked = points(rng, "normal", 3000, 32), points(rng, "normal", 20, 32)
    expected = oracle(asked, index, 5)
    seen = []
    product = torch.mm
    backends: Any = torch.backends

    def watched(*arguments: Any, **options: Any) -> Any:
        matmul = getattr(backends.mkldnn, "matmul", None)  # since torch 2.9
        precision = matmul.fp32_precision if matmul else torch.get_float32_matmul_precision()
        seen.append((precision, torch.is_autocast_enabled("cpu")))
        return product(*arguments, **options)

    monkeypatch.setattr(torch, "mm", watched)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(search(asked, index, 5), expected)
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) <= {("ieee", False), ("highest", False)}
    assert seen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_takes_tensors_of_any_float_type_at_their_own_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    index = torch.randn(400, 12, generator=generator).to(dtype)
    asked = torch.randn(10, 12, generator=generator).to(dtype)
    assert_same(search(asked, index, 3), oracle(asked.double().numpy(), index.double().numpy(), 3))


def test_float64_is_not_rounded_first() -> None:
    index = np.array([[1.0 + 2e-12], [1.0 + 1e-12]])
    assert search(np.array([[1.0]]), index, 2).indices.tolist() == [[1, 0]]


def test_takes_views_and_whole_numbers() -> None:
    index = np.arange(24).reshape(4, 6)[:, ::2]
    assert_same(search(index[::-1], index, 2), oracle(index[::-1], index, 2))


def test_fewer_rows_than_k_are_filled_up() -> None:
    found = search(np.zeros((1, 2), np.float32), np.ones((2, 2), np.float32), 4)
    assert found.indices.tolist() == [[0, 1, -1, -1]]
    assert found.distances[0, 2:].tolist() == [np.inf, np.inf]
    empty = search(np.zeros((2, 2), np.float32), np.zeros((0, 2), np.float32), 1)
    assert empty.indices.tolist() == [[-1], [-1]]
    assert search(np.zeros((0, 2), np.float32), np.ones((2, 2), np.float32), 3).indices.shape == (0, 3)


def test_never_holds_all_distances() -> None:
    # 6,000 x 60,000 float32 are 1.4 GB
    code = """
import resource, numpy as np
from guie_train.retrieval import search
rng = np.random.default_rng(0)
x, y = (rng.standard_normal((n, 16), dtype=np.float32) for n in (6_000, 60_000))
search(x[:2], y[:100], 5)  # what torch loads the first time
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
search(x, y, 5)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    kilobytes = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert kilobytes < 300_000


@pytest.mark.parametrize("values", [[np.nan], [np.inf], [-np.inf]])
def test_values_that_are_not_finite_are_named(values: list[float]) -> None:
    good, bad = np.zeros((5, 3), np.float32), np.zeros((5, 3), np.float32)
    bad[4, 1] = values[0]
    with pytest.raises(GuieError, match=r"row 4 of the index holds -?(nan|inf) in dimension 1"):
        search(good, bad, 1)
    with pytest.raises(GuieError, match="row 4 of the queries"):
        search(bad, good, 1)


def test_errors_say_what_does_not_fit() -> None:
    x = np.zeros((3, 4), np.float32)
    with pytest.raises(GuieError, match="queries have 4 dimensions and the index has 2"):
        search(x, x[:, :2], 1)
    with pytest.raises(GuieError, match="k is 0"):
        search(x, x, 0)
    with pytest.raises(GuieError, match=r"queries must be a matrix .* not of shape \[4\]"):
        search(x[0], x, 1)
    with pytest.raises(GuieError, match="must be numbers"):
        search(x.astype(str), x, 1)
    with pytest.raises(GuieError, match="above 1e100"):
        search(x.astype(float) + 1e200, x, 1)
    with pytest.raises(GuieError, match=r"query_ids has shape \[2\]; there are 3 rows"):
        search(x, x, 1, query_ids=[0, 1])
    with pytest.raises(GuieError, match="give both"):
        search(x, x, 1, query_ids=["a", "b", "c"])
    with pytest.raises(GuieError, match="cannot be compared"):
        search(x, x, 1, query_ids=["a", "b", "c"], index_ids=[0, 1, 2])
    with pytest.raises(GuieError, match="whole numbers or texts"):
        search(x, x, 1, query_ids=[0.5, 1, 2])
