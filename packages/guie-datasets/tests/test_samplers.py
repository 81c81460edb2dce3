"""Samplers keep their promises for any labels, and say the same again; loops over plain lists are the oracle."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from guie_core import GuieError, UsageError
from guie_core.registry import build
from guie_datasets import (
    CategoryShares,
    ClassBalanced,
    Manifest,
    MPerClass,
    RoundRobinSources,
    Sampler,
    Shuffled,
)


def manifest(labels: list[int], **columns: list[str]) -> Manifest:
    n = len(labels)
    rows: dict[str, Any] = {"path": [f"{i}" for i in range(n)], "label": labels, "width": [1] * n, "height": [1] * n}
    return Manifest.from_columns({**rows, "hash": [f"{i:032x}" for i in range(n)], **columns})


labels = st.lists(st.integers(0, 6), min_size=1, max_size=60)
quick = settings(max_examples=60, deadline=None)


def dealt_in_turn(drawn: list[int], group: list[Any]) -> bool:
    """Whether at any time the images of a group have been drawn equally often, give or take one."""
    times: Counter[int] = Counter()
    for row in drawn:
        times[row] += 1
        counts = [times[other] for other in range(len(group)) if group[other] == group[row]]
        if max(counts) - min(counts) > 1:
            return False
    return True


def check(sampler: Sampler, rows: int) -> list[list[int]]:
    """What holds for every sampler; returns an epoch."""
    epoch = sampler.epoch(3)
    assert epoch.dtype == np.int64
    assert epoch.shape == (len(sampler), sampler.batch_size)
    assert len(sampler) == rows // sampler.batch_size
    assert epoch.min() >= 0
    assert epoch.max() < rows
    assert np.array_equal(sampler.epoch(3), epoch)
    found: list[list[int]] = epoch.tolist()
    return found


@quick
@given(labels, st.integers(1, 9), st.integers(0, 3))
def test_shuffled(classes: list[int], batch_size: int, seed: int) -> None:
    assume(len(classes) >= batch_size)
    sampler = Shuffled(manifest(classes), batch_size=batch_size, seed=seed)
    drawn = [row for batch in check(sampler, len(classes)) for row in batch]
    assert len(set(drawn)) == len(drawn) > len(classes) - batch_size


@quick
@given(labels, st.integers(1, 9), st.integers(0, 3))
def test_class_balanced(classes: list[int], batch_size: int, seed: int) -> None:
    assume(len(classes) >= batch_size)
    sampler = ClassBalanced(manifest(classes), batch_size=batch_size, seed=seed)
    drawn = [row for batch in check(sampler, len(classes)) for row in batch]
    assert dealt_in_turn(drawn, classes)
    for stop in range(1, len(drawn) + 1):
        counts = Counter({label: 0 for label in classes})
        counts.update(classes[row] for row in drawn[:stop])
        assert max(counts.values()) - min(counts.values()) <= 1


@quick
@given(labels, st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_m_per_class(classes: list[int], m: int, each: int, seed: int) -> None:
    assume(len(classes) >= m * each and len(set(classes)) >= each)
    sampler = MPerClass(manifest(classes), m=m, batch_size=m * each, seed=seed)
    epoch = check(sampler, len(classes))
    sizes = Counter(classes)
    assert dealt_in_turn([row for batch in epoch for row in batch], classes)
    for batch in epoch:
        assert Counter(classes[row] for row in batch) == dict.fromkeys({classes[row] for row in batch}, m)
        assert [classes[row] for row in batch[::m] for _ in range(m)] == [classes[row] for row in batch]
        for row, times in Counter(batch).items():
            assert times in (m // sizes[classes[row]], -(-m // sizes[classes[row]]))
    whole = len(sizes) // each
    for start in range(0, len(epoch), whole):  # no class a second time before the pass is over
        seen = [classes[row] for batch in epoch[start : start + whole] for row in batch[::m]]
        assert len(set(seen)) == len(seen)


def test_m_per_class_promises_what_pytorch_metric_learning_does() -> None:
    """Theirs on the same labels: batches of the same make, and repeats within a class only where ours have them."""
    from pytorch_metric_learning.samplers import MPerClassSampler

    classes = [label for label in range(12) for _ in range(1 + label)]
    theirs = list(MPerClassSampler(classes, m=4, batch_size=16, length_before_new_iter=64))
    ours = MPerClass(manifest(classes), m=4, batch_size=16).epoch(0).ravel().tolist()
    sizes = Counter(classes)
    for drawn in (theirs, ours):
        assert len(drawn) == 64
        for start in range(0, 64, 16):
            batch = drawn[start : start + 16]
            counts = Counter(classes[row] for row in batch)
            assert set(counts.values()) == {4}
            for label in counts:
                distinct = len({row for row in batch if classes[row] == label})
                assert distinct == 4 if sizes[label] >= 4 else distinct <= sizes[label]
                if drawn is ours:
                    assert distinct == min(4, sizes[label])
    with pytest.raises(AssertionError, match="must be >= batch_size"):
        MPerClassSampler(classes, m=1, batch_size=16, length_before_new_iter=64)
    with pytest.raises(GuieError, match="takes 16 classes, and there are 12"):
        MPerClass(manifest(classes), m=1, batch_size=16)


@quick
@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=40), st.integers(1, 6))
def test_round_robin_of_sources(sources: list[str], batch_size: int) -> None:
    assume(len(sources) >= batch_size)
    sampler = RoundRobinSources(manifest([0] * len(sources), source=sources), batch_size=batch_size)
    drawn = [row for batch in check(sampler, len(sources)) for row in batch]
    assert dealt_in_turn(drawn, sources)
    turns = [sources[row] for row in drawn]
    count = len(set(sources))
    assert len(set(turns[:count])) == min(count, len(turns))
    assert all(turn == turns[place % count] for place, turn in enumerate(turns))


@quick
@given(
    st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=8, max_size=60),
    st.lists(st.integers(1, 20), min_size=1, max_size=3),
    st.integers(1, 8),
)
def test_shares_of_categories(categories: list[str], weights: list[int], batch_size: int) -> None:
    names = sorted(set(categories))[: len(weights)]
    total = sum(weights[: len(names)])
    shares = {name: weight / total for name, weight in zip(names, weights, strict=False)}
    sampler = CategoryShares(manifest([0] * len(categories), category=categories), shares=shares, batch_size=batch_size)
    drawn = [row for batch in check(sampler, len(categories)) for row in batch]
    assert dealt_in_turn(drawn, categories)
    assert {categories[row] for row in drawn} <= set(shares)
    for stop in range(1, len(drawn) + 1):
        counts = Counter(categories[row] for row in drawn[:stop])
        for name, share in shares.items():
            # one more for whole numbers at the end of the epoch
            assert abs(counts[name] - share * stop) <= 0.5 + share * len(shares) / 2 + 1


SAMPLERS: list[tuple[str, dict[str, Any]]] = [
    ("Shuffled", {}),
    ("ClassBalanced", {}),
    ("MPerClass", {"m": 2}),
    ("RoundRobinSources", {}),
    ("CategoryShares", {"shares": {"x": 0.25, "y": 0.75}}),
]


@pytest.mark.parametrize(("name", "options"), SAMPLERS)
def test_epochs_and_seeds_differ_and_samplers_are_components(name: str, options: dict[str, Any]) -> None:
    rows = manifest([i % 10 for i in range(100)], source=list("abcde") * 20, category=list("xxyy") * 25)
    sampler = build("samplers", {"type": name, "batch_size": 20, **options}, manifest=rows)
    other = build("samplers", {"type": name, "batch_size": 20, "seed": 1, **options}, manifest=rows)
    epochs = [each.epoch(number).tobytes() for each in (sampler, other) for number in range(4)]
    assert len(set(epochs)) == 8
    # the rows of a group are drawn independently of where they stand: none is favoured over many epochs
    times = np.bincount(np.concatenate([sampler.epoch(n).ravel() for n in range(200)]), minlength=100)
    for group in np.unique(rows.column("category")):
        of_group = times[rows.column("category") == group]
        assert of_group.std() < 0.1 * of_group.mean()


def test_many_rows_and_classes() -> None:
    labels = np.random.default_rng(0).integers(0, 5_000, 40_000)
    epoch = MPerClass(manifest(labels.tolist()), m=4, batch_size=512).epoch(0)
    assert epoch.shape == (78, 512)
    assert (labels[epoch.reshape(-1, 4)] == labels[epoch.reshape(-1, 4)[:, :1]]).all()


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("Shuffled", {"batch_size": 0}, UsageError, "batch_size of a sampler is 0"),
        ("Shuffled", {"batch_size": 9}, GuieError, "8 images do not fill one batch of 9"),
        ("Shuffled", {"batch_size": 4, "seed": -1}, UsageError, "seed is -1; it is a whole number from 0"),
        ("MPerClass", {"m": 3, "batch_size": 8}, UsageError, "must be a multiple"),
        ("MPerClass", {"m": 0, "batch_size": 8}, UsageError, "m is 0"),
        ("CategoryShares", {"shares": {"toy": 0.5}, "batch_size": 8}, UsageError, "add up to 1"),
        ("CategoryShares", {"shares": {"toy": 2, "food": -1}, "batch_size": 8}, UsageError, "above 0"),
        ("CategoryShares", {"shares": {}, "batch_size": 8}, UsageError, "add up to 1"),
        ("CategoryShares", {"shares": {"toys": 1.0}, "batch_size": 8}, GuieError, "Did you mean 'toy'"),
    ],
)
def test_what_cannot_be_sampled(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    rows = manifest([0, 1] * 4, category=["toy", "food"] * 4)
    with pytest.raises(error, match=message):
        build("samplers", {"type": name, **options}, manifest=rows)
