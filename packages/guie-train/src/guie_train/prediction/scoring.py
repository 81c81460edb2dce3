"""The contest's score of a submission: mP@5 against a solution file, by the host's rules."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guie_core import GuieError, UsageError
from guie_core.wording import listing, shown
from guie_train.prediction.outputs import read
from guie_train.prediction.submission import MAX_DIMENSION
from guie_train.retrieval import metric, search

RANKS = 5
_IGNORED = "ignored"  # what GLDv2's solution calls queries that don't count


@dataclass(frozen=True)
class Solution:
    """What is right for each query.

    answers: query id -> ids of index images. usage: query id -> the part of the test that it belongs to, "Public".
    index: ids of the images that may be answered; None: the images' folder says so. ignored: queries that don't count.
    """

    answers: Mapping[str, frozenset[str]]
    usage: Mapping[str, str]
    index: frozenset[str] | None = None
    ignored: int = 0


@dataclass(frozen=True)
class Score:
    """usage -> (queries, mP@5), the last "all"; queries whose image is missing, and answers that are."""

    parts: Mapping[str, tuple[int, float]]
    index: int
    missing_queries: Sequence[str]
    missing_answers: int


def read_solution(path: Path) -> Solution:
    """Reads a solution, a CSV table with a header, in one of two forms.

    - the host's: query id, ids of its index images with spaces between them, usage (Public or Private), in this order
      whatever the header calls them; queries whose usage is "Ignored" don't count;
    - labels: columns `id`, `label` and `usage`, which is "query", "index", or both with a space between; what has the
      query's label, other than itself, is right.

    Raises UsageError: no such file. GuieError, with the line: it is no such table, a query is there twice, or nothing
    is right for it.
    """
    if not path.is_file():
        raise UsageError(f"{shown(path)}: no such file")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file)
            header = [name.strip().lower() for name in next(table, [])]
            lines = [(table.line_num, row) for row in table if row]
    except (OSError, ValueError, csv.Error) as error:
        raise GuieError(f"{shown(path)}: cannot be read as a CSV table: {error}") from error
    if {"id", "label", "usage"} <= set(header):
        solution = _from_labels(path, header, lines)
    elif len(header) == 3:
        solution = _from_host(path, lines)
    else:
        raise GuieError(
            f"{shown(path)}: its columns are {listing(header)}. A solution has three: query id, index ids, usage; "
            "or id, label and usage"
        )
    if not solution.answers:
        raise GuieError(f"{shown(path)}: there is no query in it")
    return solution


def _from_host(path: Path, lines: Sequence[tuple[int, Sequence[str]]]) -> Solution:
    answers: dict[str, frozenset[str]] = {}
    usage: dict[str, str] = {}
    ignored = 0
    for number, row in lines:
        if len(row) != 3:
            raise GuieError(f"{shown(path)}, line {number}: {len(row)} values where there are 3 columns")
        query, right, part = (value.strip() for value in row)
        if part.lower() == _IGNORED:
            ignored += 1
            continue
        _add(path, number, query, frozenset(right.split()) - {query}, answers)
        usage[query] = part
    return Solution(answers, usage, ignored=ignored)


def _from_labels(path: Path, header: Sequence[str], lines: Sequence[tuple[int, Sequence[str]]]) -> Solution:
    places = [header.index(name) for name in ("id", "label", "usage")]
    queries: list[tuple[int, str, str]] = []
    by_label: dict[str, set[str]] = defaultdict(set)
    for number, row in lines:
        if len(row) != len(header):
            raise GuieError(f"{shown(path)}, line {number}: {len(row)} values where there are {len(header)} columns")
        name, label, usage = (row[place].strip() for place in places)
        uses = set(usage.lower().split())
        if not uses or uses - {"query", "index"}:
            raise GuieError(f"{shown(path)}, line {number}: usage is {usage!r}; it is query, index, or both")
        if "query" in uses:
            queries.append((number, name, label))
        if "index" in uses:
            by_label[label].add(name)
    answers: dict[str, frozenset[str]] = {}
    for number, name, label in queries:
        _add(path, number, name, frozenset(by_label[label] - {name}), answers)
    return Solution(answers, dict.fromkeys(answers, ""), frozenset().union(*by_label.values()))


def _add(path: Path, number: int, query: str, right: frozenset[str], answers: dict[str, frozenset[str]]) -> None:
    if query in answers:
        raise GuieError(f"{shown(path)}, line {number}: query {query} is there twice")
    if not right:
        raise GuieError(
            f"{shown(path)}, line {number}: no image is right for query {query}; the host takes no such row"
        )
    answers[query] = right


def score(solution: Solution, embeddings: Path, images: Path) -> Score:
    """The score of a file of embeddings that `guie predict` made of the images in a folder.

    An image's id is its file's name without the suffix. The index is what the solution says, else the images below
    `images/index` if there is such a folder, else all but the queries that are no other query's answer. A query doesn't
    find itself. Neighbours are by Euclidean distance, then id. As the host counts: a query without an image scores 0,
    and answers without an image stay in the count of what is right.

    Raises GuieError: more than 64 dimensions, two images of one id, or no image of a query or of the index.
    """
    table, vectors = read(embeddings)
    if vectors.shape[1] > MAX_DIMENSION:
        raise GuieError(f"the embeddings have {vectors.shape[1]} dimensions; the contest takes {MAX_DIMENSION} at most")
    paths = [Path(path) for path in table.column("path").to_pylist()]
    ids = [path.stem for path in paths]
    inside = images.expanduser().absolute() / "index"
    apart = [path.is_relative_to(inside) for path in paths] if inside.is_dir() else None
    index_rows = _index_rows(solution, ids, apart)
    # where the index has a folder of its own, a query's own image is looked for outside it first
    query_rows = _unique(ids, index_rows) | _unique(ids, [row for row in range(len(ids)) if not (apart and apart[row])])
    names = list(solution.answers)
    there = [name for name in names if name in query_rows]
    if not there or not index_rows:
        what = "query" if not there else "index image"
        raise GuieError(f"{shown(images)} has no {what} of the solution; an image's id is its name without the suffix")
    index_ids = np.array([ids[row] for row in index_rows])
    found = search(
        vectors[[query_rows[name] for name in there]],
        vectors[index_rows],
        RANKS,
        query_ids=np.array(there),
        index_ids=index_ids,
    )
    relevant = np.zeros((len(there), RANKS), bool)
    for row, name in enumerate(there):
        nearest = [index_ids[place] for place in found.indices[row] if place >= 0]
        relevant[row, : len(nearest)] = [one in solution.answers[name] for one in nearest]
    counts = np.array([len(solution.answers[name]) for name in there])
    values = dict.fromkeys(names, 0.0) | dict(zip(there, metric(f"mP@{RANKS}")(relevant, counts).tolist(), strict=True))
    parts: dict[str, tuple[int, float]] = {}
    for part in sorted(set(solution.usage.values()) - {""}):
        of_part = [values[name] for name in names if solution.usage[name] == part]
        parts[part] = (len(of_part), float(np.mean(of_part)))
    parts["all"] = (len(names), float(np.mean(list(values.values()))))
    known = set(index_ids.tolist())
    missing = len(frozenset().union(*solution.answers.values()) - known)
    return Score(parts, len(index_rows), [name for name in names if name not in query_rows], missing)


def _index_rows(solution: Solution, ids: Sequence[str], apart: Sequence[bool] | None) -> list[int]:
    """Rows of the images that may be answered. apart: which are in the index's own folder, if there is one."""
    rows = [row for row in range(len(ids)) if apart is None or apart[row]]
    if solution.index is not None:
        return [row for row in rows if ids[row] in solution.index]
    if apart is not None:
        return rows
    only_asked = solution.answers.keys() - frozenset().union(*solution.answers.values())
    return [row for row in rows if ids[row] not in only_asked]


def _unique(ids: Sequence[str], rows: Sequence[int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        if ids[row] in found:
            raise GuieError(f"two images have the id {ids[row]}; each needs a file name of its own")
        found[ids[row]] = row
    return found
