"""The contest's score of a submission: mP@5 against a solution file, by the host's rules."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guie_core import GuieError, UsageError
from guie_core.wording import did_you_mean, listing, shown
from guie_train.prediction.outputs import read
from guie_train.prediction.submission import MAX_DIMENSION
from guie_train.retrieval import metric, search

RANKS = 5
_HOST = ("id", "images", "usage")  # of the host's form, where its header has these words
_LABELS = ("id", "label", "usage")
_USAGES = {"public": "Public", "private": "Private", "ignored": "Ignored", "": ""}
_UNKNOWN = ("", "-1", "-1.0")  # labels of images of which nothing is known; pandas writes -1.0 beside gaps


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


def read_solution(path: Path) -> Solution:
    """Reads a solution, a CSV table with a header, in one of two forms.

    - the host's: query id, ids of its index images with spaces between them, usage (Public, Private or nothing); in
      this order, unless the header calls them id, images and usage. Queries whose usage is "Ignored" don't count;
    - labels: columns `id`, `label` and `usage`, which is "query", "index", or both with a space between; what has the
      query's label, other than itself, is right. Without a label, or with -1, nothing is known of an image: in the
      index it is right for no query.

    Raises UsageError: no such file. GuieError, with the line: it is no such table, it has no header, a query or an
    index image is there twice, or nothing is right for a query.
    """
    if not path.is_file():
        raise UsageError(f"{shown(path)}: no such file")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file)
            names = next(table, [])
            lines = [(table.line_num, row) for row in table if row]
    except (OSError, ValueError, csv.Error) as error:
        raise GuieError(f"{shown(path)}: cannot be read as a CSV table: {error}") from error
    header = [name.strip().lower() for name in names]
    if set(_LABELS) <= set(header):
        solution = _from_labels(path, _rows(path, header, [header.index(name) for name in _LABELS], lines))
    elif len(header) == 3:
        if header[2] in _USAGES:
            raise GuieError(
                f"{shown(path)}, line 1: {listing(names)} is no header but a query, which would be left out. "
                "Begin with a line such as id,images,Usage"
            )
        places = [header.index(name) for name in _HOST] if set(header) == set(_HOST) else [0, 1, 2]
        solution = _from_host(path, _rows(path, header, places, lines))
    else:
        raise GuieError(f"{shown(path)}: {_no_solution(names)}")
    if not solution.answers:
        raise GuieError(f"{shown(path)}: there is no query in it")
    return solution


def _no_solution(names: Sequence[str]) -> str:
    if not names:
        return "it is empty. A solution begins with a header, such as id,images,Usage"
    if len(names) == 1 and (mark := next((mark for mark in ";\t|" if mark in names[0]), "")):
        return f"its columns seem to be separated by {mark!r}; a solution's are by commas"
    return f"its columns are {listing(names)}. A solution has three: query id, index ids, usage; or id, label and usage"


def _rows(
    path: Path, header: Sequence[str], places: Sequence[int], lines: Iterable[tuple[int, Sequence[str]]]
) -> Iterator[tuple[str, list[str]]]:
    """Where each row is, for messages, and its values in the columns of `places`."""
    for number, row in lines:
        where = f"{shown(path)}, line {number}"
        if len(row) != len(header):
            raise GuieError(f"{where}: {len(row)} values where there are {len(header)} columns")
        yield where, [row[place].strip() for place in places]


def _from_host(path: Path, rows: Iterable[tuple[str, list[str]]]) -> Solution:
    answers: dict[str, frozenset[str]] = {}
    usage: dict[str, str] = {}
    ignored = 0
    for where, (query, right, part) in rows:
        if part.lower() not in _USAGES:
            raise GuieError(
                f"{where}: usage is {part!r}; it is {listing(filter(None, _USAGES.values()))}, or nothing."
                f"{did_you_mean(part, filter(None, _USAGES.values()))} The columns are query id, index ids, usage"
            )
        if _USAGES[part.lower()] == "Ignored":
            ignored += 1
            continue
        _add(where, query, frozenset(right.split()) - {query}, answers)
        usage[query] = _USAGES[part.lower()]
    return Solution(answers, usage, ignored=ignored)


def _from_labels(path: Path, rows: Iterable[tuple[str, list[str]]]) -> Solution:
    queries: list[tuple[str, str, str]] = []
    index: set[str] = set()
    by_label: dict[str, set[str]] = defaultdict(set)
    for where, (name, label, usage) in rows:
        uses = set(usage.lower().split())
        if not uses or uses - {"query", "index"}:
            raise GuieError(f"{where}: usage is {usage!r}; it is query, index, or both")
        known = label not in _UNKNOWN
        if "query" in uses:
            if not known:
                raise GuieError(f"{where}: query {name} has no label; such an image can be in the index alone")
            queries.append((where, name, label))
        if "index" in uses:
            if name in index:
                raise GuieError(f"{where}: index image {name} is there twice")
            index.add(name)
            if known:
                by_label[label].add(name)
    answers: dict[str, frozenset[str]] = {}
    for where, name, label in queries:
        _add(where, name, frozenset(by_label[label] - {name}), answers)
    return Solution(answers, dict.fromkeys(answers, ""), frozenset(index))


def _add(where: str, query: str, right: frozenset[str], answers: dict[str, frozenset[str]]) -> None:
    if query in answers:
        raise GuieError(f"{where}: query {query} is there twice")
    if not right:
        raise GuieError(f"{where}: no image is right for query {query}; the host takes no such row")
    answers[query] = right


@dataclass(frozen=True)
class Matched:
    """Which images of a folder a solution speaks of.

    queries: id -> row, of those that are there. index: rows that may be answered. place: where those are looked for.
    missing_answers: ids of right images that are none of them.
    """

    queries: Mapping[str, int]
    index: Sequence[int]
    place: Path
    missing_answers: Sequence[str]


@dataclass(frozen=True)
class Score:
    """usage -> (queries, mP@5), the last "all"; what was found of the solution, and queries whose image was not."""

    parts: Mapping[str, tuple[int, float]]
    matched: Matched
    missing_queries: Sequence[str]


def match(solution: Solution, paths: Sequence[Path], images: Path) -> Matched:
    """Finds what a solution speaks of among the images below the folder `images`; rows are places in `paths`.

    An image's id is its file's name without the suffix. The index is what the solution says, else the images below
    `images/index` if there is such a folder, else all but the queries that are no other query's answer. Where an index
    image and a query have one id, the former is the one below `images/index`.

    Raises GuieError: no query is there, or no image that is right for any, or two images have one id.
    """
    ids = [path.stem for path in paths]
    inside = images.expanduser().absolute() / "index"
    apart = [inside.is_dir() and path.is_relative_to(inside) for path in paths]
    right = frozenset().union(*solution.answers.values())
    place = images
    if solution.index is not None:
        named = [row for row, name in enumerate(ids) if name in solution.index]
        taken = {ids[row] for row in named if apart[row]}
        index = [row for row in named if apart[row] or ids[row] not in taken]
    elif inside.is_dir():
        place = images / "index"
        index = [row for row in range(len(ids)) if apart[row]]
    else:
        only_asked = solution.answers.keys() - right
        index = [row for row, name in enumerate(ids) if name not in only_asked]
    by_id = _unique(ids, index)
    among = by_id | _unique(ids, [row for row in range(len(ids)) if not apart[row]])
    queries = {name: among[name] for name in solution.answers if name in among}
    missing = sorted(right - by_id.keys())
    told = "an image's id is its name without the suffix"
    if not queries:
        raise GuieError(f"{shown(images)} has no query of the solution, such as {next(iter(solution.answers))}; {told}")
    if len(missing) == len(right):
        query, answers = next(iter(solution.answers.items()))
        raise GuieError(
            f"{shown(place)} has none of the images that the solution calls right, such as {min(answers)} for query "
            f"{query}; {told}" + (", and ids have spaces between them" if any(c in min(answers) for c in ",;|") else "")
        )
    return Matched(queries, index, place, missing)


def score(solution: Solution, embeddings: Path, images: Path) -> Score:
    """The score of a file of embeddings that `guie predict` made of the images in a folder.

    Queries and index are those of `match`; a query doesn't find itself. Neighbours are by Euclidean distance, then id.
    As the host counts: a query without an image scores 0, and answers without an image stay in the count of what is
    right.

    Raises GuieError: more than 64 dimensions, or as `match` does.
    """
    table, vectors = read(embeddings)
    if vectors.shape[1] > MAX_DIMENSION:
        raise GuieError(f"the embeddings have {vectors.shape[1]} dimensions; the contest takes {MAX_DIMENSION} at most")
    paths = [Path(path) for path in table.column("path").to_pylist()]
    matched = match(solution, paths, images)
    names, there = list(solution.answers), list(matched.queries)
    index_ids = np.array([paths[row].stem for row in matched.index])
    found = search(
        vectors[list(matched.queries.values())],
        vectors[matched.index],
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
    missing_queries = [name for name in names if name not in matched.queries]
    return Score(parts, matched, missing_queries)


def _unique(ids: Sequence[str], rows: Sequence[int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        if ids[row] in found:
            raise GuieError(f"two images have the id {ids[row]}; each needs a file name of its own")
        found[ids[row]] = row
    return found
