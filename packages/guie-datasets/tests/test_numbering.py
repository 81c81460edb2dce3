"""Numbers of shards, compared with sets that were whole before some of their names were taken out."""

from __future__ import annotations

import random

import pytest

from guie_datasets.numbering import gaps


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["cars-000000.tar", "cars-000002.tar"], ["cars-000001.tar is missing"]),
        (["cars-0.tfrecord", "cars-2.tfrecord", "notes.txt"], ["cars-1.tfrecord is missing"]),
        (["cars_9.tar.gz", "cars_11.tar.gz"], ["cars_10.tar.gz is missing"]),
        (
            ["cars-train.tfrecord-00000-of-00003", "cars-train.tfrecord-00002-of-00003"],
            ["cars-train.tfrecord-00001-of-00003 is missing"],
        ),
        (["t-00000-of-00002.tar"], ["t-00001-of-00002.tar is missing"]),
        (["t-00001-of-00002.tar"], ["t-00000-of-00002.tar is missing"]),
        (["t-00001-of-00003.tar", "t-00003-of-00003.tar"], ["t-00002-of-00003.tar is missing"]),  # counted from 1
        (["a-train-01-5.tfrec"], ["a-train-00-*.tfrec is missing"]),
        (["a-train-00-5.tfrec", "a-train-00-7.tfrec"], ["a-train-00-*.tfrec is there more than once"]),
        (["x-0003.tar", "x-0004.tar"], [f"x-000{number}.tar is missing" for number in range(3)]),
        (["a-0.tar", "b-0.tar", "b-2.tar"], ["b-1.tar is missing"]),  # two sets in a folder
        # which are whole
        (["x-0001.tar", "x-0002.tar"], []),
        (["x-1.tar", "x-2.tar", "x-3.tar"], []),
        (["2019.tar", "2020.tar"], []),
        (["day-20230101.tar", "day-20230301.tar"], []),
        (["x-0007.tar"], []),
        (["cars.tar", "boats.tar"], []),
        ([], []),
    ],
)
def test_what_is_missing(names: list[str], missing: list[str]) -> None:
    assert gaps(names) == missing


def test_a_long_list_is_cut_and_its_length_told() -> None:
    problems = gaps(["x-000000000-of-900000000.tfrecord"])
    assert len(problems) == 21
    assert problems[-1] == "and 899,999,979 more of x-*-of-900000000.tfrecord"


@pytest.mark.parametrize(
    "pattern", ["s-{:05d}.tar", "s-{}.tar.gz", "s.tfrecord-{:05d}-of-00040", "s-{:02d}-1234.tfrec"]
)
def test_every_gap_of_a_whole_set_is_found(pattern: str) -> None:
    draw = random.Random(0)
    for _ in range(50):
        absent = set(draw.sample(range(1, 39), draw.randrange(4)))
        names = [pattern.format(number) for number in range(40) if number not in absent]
        draw.shuffle(names)
        found = gaps(names)
        wanted = [f"{pattern.format(number)} is missing".replace("-1234.", "-*.") for number in sorted(absent)]
        assert found == wanted
