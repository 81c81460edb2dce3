"""Images that are there twice: the same bytes, or nearly the same picture.

Each image has a perceptual hash of 64 bits, which compression, size and brightness change by a few bits. Hashes that
differ in few bits are found without comparing all with all, and the pictures that they belong to are compared a second
time, at 32 x 32 pixels in colour, since drawings of the same outline have the same hash.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from guie_core import GuieError, Interrupted
from guie_core.files import atomic_write
from guie_core.interrupt import interruptible
from guie_core.processors import threads
from guie_core.progress import bar, write
from guie_core.wording import plural
from guie_datasets.checks import check_max_bad
from guie_datasets.images.decoding import BadImage, decode
from guie_datasets.images.reading import Reader, ordered_map
from guie_datasets.manifest import Manifest
from guie_datasets.quarantine import Finding

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 32  #: pixels of a thumbnail
DISTANCE = 8  #: bits that the hashes of nearly the same pictures differ in, by default
KINDS = ("exact", "near", "flipped")

_BATCH = 16  # images a thread takes at once
_SAVE = 100_000  # images after which hashes are saved, since a million take an hour
_BLOCK = 1 << 20  # candidates at a time
_ALIKE = 0.9  # share of the variance that must be explained
_LIKELY = 0.7  # correlation, below which pictures are not compared any further
_PATCH = 30.0  # gray levels, root mean square: what the worst patch of 4 x 4 pixels may differ by


# --- perceptual hashes


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [3, H, W] to uint8 [32, 32, 3], whatever its shape was."""
    pixels = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    return np.asarray(pixels.resize((SIDE, SIDE), Image.Resampling.BILINEAR))  # Pillow's averages where it shrinks


def perceptual_hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """uint8 [N, 32, 32, 3] to [N]: a bit for each of the 64 lowest frequencies of the gray image but the mean.

    A bit says that the coefficient of the cosine transform, times the root of its frequency, is above 0.4 times the
    mean of such magnitudes. pHash (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010)
    compares with the median, which is near zero: of a symmetric image half the coefficients are, and their bits chance.
    """
    rows, columns, weights, basis = _frequencies()
    hashes = np.empty(len(thumbnails), np.uint64)
    for start in range(0, len(thumbnails), 1024):
        block = thumbnails[start : start + 1024]
        gray = block.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        values = (basis @ gray @ basis.T)[:, rows, columns] * weights
        # what a flat image leaves of rounding is no structure
        level = np.maximum(0.4 * np.abs(values).mean(axis=1, keepdims=True), 1e-2)
        bits = np.ascontiguousarray(np.packbits(values > level, axis=1, bitorder="little"))
        hashes[start : start + 1024] = bits.view("<u8")[:, 0]
    return hashes


@cache
def _frequencies() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Row and column of each bit's coefficient, its weight, and the cosines [9, 32].

    Neighbours in frequency are dealt out to different quarters of the hash, so that each has as much to tell.
    """
    lowest = sorted(np.ndindex(9, 9), key=lambda at: (at[0] ** 2 + at[1] ** 2, at))[1:65]
    dealt: NDArray[np.int64] = np.array(lowest).reshape(16, 4, 2).transpose(1, 0, 2).reshape(64, 2)
    rows, columns = dealt[:, 0], dealt[:, 1]
    steps = (np.arange(SIDE) + 0.5) * np.pi / SIDE
    basis = np.cos(np.arange(9)[:, None] * steps) / SIDE
    return rows, columns, np.sqrt(np.hypot(rows, columns)).astype(np.float32), basis.astype(np.float32)


# --- the search


def close_pairs(
    a: NDArray[np.uint64], b: NDArray[np.uint64], distance: int
) -> Generator[tuple[NDArray[np.int64], NDArray[np.int64], float], None, None]:
    """All (i, j) whose hashes a[i] and b[j] differ in at most `distance` bits, each once, in no certain order.

    They come in blocks: i [P], j [P], and the share of the work that is done, 0..1. Memory is that of a block and a few
    copies of the hashes; there is never a table of len(a) x len(b).

    Of two such hashes one of the four quarters differs in no more than a quarter of the bits. Where that leaves few
    candidates they are looked up by quarter (multi-index hashing: Norouzi, Punjani and Fleet, Fast Search in Hamming
    Space with Multi-Index Hashing, CVPR 2012); elsewhere all are compared with all, block by block. Both are exact.
    """
    if not 0 <= distance <= 64:
        raise ValueError(f"distance must be 0..64, not {distance}")
    if len(a) > len(b):  # the fewer ask
        for j, i, share in close_pairs(b, a, distance):
            yield i, j, share
        return
    everything = len(a) * len(b)
    if everything > 1 << 24:
        quarters = [_Quarter(a, b, number, radius) for number, radius in enumerate(_radii(distance)) if radius >= 0]
        candidates = sum(quarter.candidates for quarter in quarters)
        if 8 * candidates < everything:  # a candidate that is looked up costs as much as 8 in a row
            yield from _look_up(a, b, distance, quarters, candidates)
            return
    yield from _compare_all(a, b, distance)


def _radii(distance: int) -> list[int]:
    """For each quarter of the hash, the bits that it may differ in; -1: it need not be looked at."""
    whole, rest = divmod(distance, 4)
    return [whole if number <= rest else whole - 1 for number in range(4)]


class _Quarter:
    """Both sides sorted by 16 of the bits."""

    def __init__(self, a: NDArray[np.uint64], b: NDArray[np.uint64], number: int, radius: int) -> None:
        self.number, self.radius = number, radius
        keys_a, keys_b = self.keys(a), self.keys(b)
        self.order_a, self.order_b = (np.argsort(keys, kind="stable") for keys in (keys_a, keys_b))
        self.keys_a = keys_a[self.order_a]
        counts = np.bincount(keys_b, minlength=1 << 16)
        self.counts, self.starts = counts, np.cumsum(counts) - counts
        bits = [1 << bit for bit in range(16)]
        self.masks = [sum(chosen) for size in range(radius + 1) for chosen in combinations(bits, size)]
        there, asked = np.unique(self.keys_a, return_counts=True)
        self.candidates = sum(int(asked @ counts[there ^ np.uint16(mask)]) for mask in self.masks)

    def keys(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint16]:
        return (hashes >> np.uint64(16 * self.number)).astype(np.uint16)


def _look_up(
    a: NDArray[np.uint64], b: NDArray[np.uint64], distance: int, quarters: Sequence[_Quarter], candidates: int
) -> Generator[tuple[NDArray[np.int64], NDArray[np.int64], float], None, None]:
    done = 0
    for place, quarter in enumerate(quarters):
        hashes_a, hashes_b = a[quarter.order_a], b[quarter.order_b]
        for mask in quarter.masks:
            keys = quarter.keys_a ^ np.uint16(mask)
            asked = np.flatnonzero(quarter.counts[keys])
            for first, second in _ranges(quarter.starts[keys[asked]], quarter.counts[keys[asked]]):
                done += len(first)
                query = asked[first]
                differ = hashes_a[query] ^ hashes_b[second]
                hit = np.flatnonzero(np.bitwise_count(differ) <= distance)
                for before in quarters[:place]:  # a pair that an earlier quarter has found is not new
                    hit = hit[np.bitwise_count(before.keys(differ[hit])) > before.radius]
                share = done / max(candidates, 1)
                yield quarter.order_a[query[hit]], quarter.order_b[second[hit]], share


def _ranges(
    starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(number of the range, position) for all positions of the ranges start..start + count, in blocks.

    No range is empty.
    """
    ends = np.cumsum(counts)
    before = ends - counts
    total = int(ends[-1]) if len(ends) else 0
    for begin in range(0, total, _BLOCK):
        end = min(begin + _BLOCK, total)
        first, last = int(np.searchsorted(ends, begin, "right")), int(np.searchsorted(ends, end - 1, "right")) + 1
        number = np.zeros(end - begin, np.int64)
        number[before[first + 1 : last] - begin] = 1
        np.cumsum(number, out=number)  # several times as fast as np.repeat
        shift = (starts - before)[first:last]
        yield number + first, np.arange(begin, end) + shift[number]


def _compare_all(
    a: NDArray[np.uint64], b: NDArray[np.uint64], distance: int
) -> Generator[tuple[NDArray[np.int64], NDArray[np.int64], float], None, None]:
    across = 1 << 13  # of b at a time: they stay in the cache
    down = 32
    for start in range(0, len(b), across):
        part = b[start : start + across]
        for row in range(0, len(a), down):
            near = np.bitwise_count(a[row : row + down, None] ^ part) <= distance
            i, j = np.divmod(np.flatnonzero(near), len(part))
            yield i + row, j + start, (start * len(a) + row * len(part)) / (len(a) * len(b))


# --- the second look


def same_picture(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether thumbnails uint8 [P, 32, 32, 3] show the same, pair by pair: bool [P].

    One is explained by the other, the better way round: brightness and contrast, the same for all colours, and a shift
    and a stretch of at most 4 %, to first order (as in Lucas and Kanade, An Iterative Image Registration Technique,
    1981). What is left must be below 10 % of the variance, and small in every patch: a face with another mouth is
    another picture.
    """
    found = np.zeros(len(a), bool)
    for start in range(0, len(a), 128):
        one, other = a[start : start + 128], b[start : start + 128]
        first, second = _blurred(one), _blurred(other)
        likely = np.flatnonzero(_correlation(first, second) >= _LIKELY)
        if not len(likely):
            continue
        first, second = first[likely], second[likely]
        forth, back = _explained(first, second, other[likely]), _explained(second, first, one[likely])
        alike = (np.maximum(forth[0], back[0]) >= _ALIKE) & (np.minimum(forth[1], back[1]) <= _PATCH)
        found[start + likely] = alike
    return found


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the values of each pair [P]; 1 where one of them is flat, which this cannot tell apart."""
    a, b = (each.reshape(len(each), -1) - each.mean((1, 2, 3))[:, None] for each in (a, b))
    both = np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))
    return np.where(both > 1, (a * b).sum(1) / np.maximum(both, 1), 1)


def _blurred(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    padded = np.pad(images.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    down = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    return np.asarray((down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]) / 4, np.float32)


def _explained(
    a: NDArray[np.float32], b: NDArray[np.float32], pixels: NDArray[np.uint8]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of b, the share of the variance that a explains [P], and the rest in the worst patch, in gray levels [P]."""
    count = len(a)
    down, across = np.gradient(a, axis=(1, 2))
    y = np.linspace(-1, 1, SIDE, dtype=np.float32)[None, :, None, None]
    x = y.transpose(0, 2, 1, 3)
    contrast = a - a.mean((1, 2, 3), keepdims=True)
    terms = (contrast, np.ones_like(a), across, down, across * x, down * y)
    model = np.stack(terms, 1).reshape(count, len(terms), -1)
    # black and white may be anything beyond; the prior keeps to "no change" what the pixels don't tell
    weighted = model * ((pixels > 4) & (pixels < 251)).reshape(count, 1, -1)
    prior = np.diag(np.array([2e3, 1e2, 1e4, 1e4, 1e4, 1e4], np.float32))
    change = np.linalg.solve(weighted @ model.transpose(0, 2, 1) + prior, weighted @ (b - a).reshape(count, -1, 1))
    lowest, highest = np.array([[-0.5, 1.0], [-128, 128], *4 * [[-2.5, 2.5]]], np.float32).T
    change = np.clip(change, lowest[:, None], highest[:, None])
    painted = np.clip(a.reshape(count, -1) + (change.transpose(0, 2, 1) @ model)[:, 0], 0, 255)
    rest = np.square(b.reshape(count, -1) - painted)
    explained = 1 - rest.mean(1) / np.maximum(b.reshape(count, -1).var(1), 1)
    patches = rest.reshape(count, SIDE // 4, 4, SIDE // 4, 4, 3).mean((2, 4, 5))
    return explained, np.sqrt(patches.max((1, 2)))


# --- the hashes of a manifest, kept beside it

_PRINT = np.dtype([("content", "<u8", 2), ("hash", "<u8"), ("mirrored", "<u8")])
_VERSION = 1  # raised when the same image gets another hash


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """A manifest's images by content and by look.

    Attributes:
        manifest: whose images they are.
        contents: the manifest's hashes of the bytes, uint64 [N, 2].
        hashes: perceptual hashes, uint64 [N]; mirrored: those of the mirrored images; 0 where nothing could be read.
        readable: [N].
        bad: why not, for one row of each content.
    """

    manifest: Manifest
    contents: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    mirrored: NDArray[np.uint64]
    readable: NDArray[np.bool_]
    bad: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        return len(self.hashes)

    def select(self, rows: NDArray[Any]) -> Fingerprints:
        """Those of the given rows (a mask, or numbers)."""
        chosen = (self.contents[rows], self.hashes[rows], self.mirrored[rows], self.readable[rows])
        return Fingerprints(self.manifest.select(rows), *chosen, self.bad)


def contents(manifest: Manifest) -> NDArray[np.uint64]:
    """The hashes of the images' bytes, uint64 [N, 2]."""
    return manifest.hashes.view("<u8")


def distinct(words: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of uint64 [N, 2]: the first row of each distinct one [D], in order of rows, and which of them each row is [N]."""
    order = np.lexsort((words[:, 1], words[:, 0]))  # stable: equals stay in order of rows
    new = np.ones(len(order), bool)
    new[1:] = (words[order[1:]] != words[order[:-1]]).any(1)
    first = order[new]
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    number = np.empty(len(order), np.int64)
    number[order] = rank[np.cumsum(new) - 1]
    return np.sort(first), number


def fingerprints(
    manifest: Manifest,
    kept: str | os.PathLike[str] | None = None,
    *,
    workers: int | None = None,
    max_bad: float = 0.001,
) -> Fingerprints:
    """The perceptual hashes of a manifest's images, each content read once by `workers` threads.

    kept: a file in which hashes are looked for first, and kept; `kept_beside(path)` is the usual one. It is made of
    what was read even if this is stopped; where it cannot be written there is a warning.

    Raises GuieError if more than `max_bad` of the images cannot be read, naming the first ten; Interrupted on Ctrl-C.
    """
    check_max_bad(max_bad)
    words = contents(manifest)
    known = _load(kept)
    first, number = distinct(np.concatenate([words, known["content"]]))
    prints = np.zeros(len(first), _PRINT)
    there = np.zeros(len(first), bool)
    prints[number[len(words) :]] = known
    there[number[len(words) :]] = True
    wanted = np.flatnonzero(~there)  # none of them is from the file: `first` is a row of the manifest
    readable = there.copy()
    images = manifest.images()
    findings: list[Finding] = []
    kept_count = len(known)

    def keep() -> None:
        nonlocal kept_count
        if kept is not None and int(readable.sum()) > kept_count:
            prints["content"][number[: len(words)]] = words
            kept_count = int(readable.sum())
            try:
                _save(kept, prints[readable])
            except (GuieError, OSError) as error:
                write(f"warning: the hashes are not kept for the next time. {error}")

    if len(wanted):
        with ExitStack() as stack:
            stop = stack.enter_context(interruptible())
            progress = stack.enter_context(bar(len(wanted), "hash images"))
            batches = [wanted[start : start + _BATCH] for start in range(0, len(wanted), _BATCH)]
            for batch, found in _read(images, [first[batch].tolist() for batch in batches], workers, stack):
                chosen = wanted[batch * _BATCH : (batch + 1) * _BATCH]
                good = np.array([not isinstance(each, str) for each in found])
                if good.any():
                    small = np.stack([each for each in found if not isinstance(each, str)])
                    prints["hash"][chosen[good]] = perceptual_hashes(small)
                    prints["mirrored"][chosen[good]] = perceptual_hashes(small[:, :, ::-1])
                    readable[chosen[good]] = True
                for at, reason in zip(chosen.tolist(), found, strict=True):
                    if isinstance(reason, str):
                        findings.append(Finding("bad", str(images[int(first[at])]), reason))
                progress.advance(len(chosen))
                if stop:
                    keep()
                    raise Interrupted(
                        f"stopped after {plural(progress.count, 'image')}. The same command goes on from there"
                    )
                if progress.count % _SAVE < len(chosen):
                    keep()
    keep()
    rows = number[: len(words)]
    bad = int((~readable[rows]).sum())
    if bad > max_bad * len(words):
        listed = "\n".join(f"  {finding.place}: {finding.reason}" for finding in findings[:10])
        raise GuieError(
            f"{bad:,} of {plural(len(words), 'image')} cannot be read ({bad / len(words):.2%}, more than "
            f"max_bad {max_bad:g} allows):\n{listed}\nIf the data were moved, prepare them again."
        )
    return Fingerprints(
        manifest, words, prints["hash"][rows], prints["mirrored"][rows], readable[rows], tuple(findings)
    )


def kept_beside(path: str | os.PathLike[str]) -> Path:
    """Where the perceptual hashes of a manifest file are kept."""
    path = Path(path)
    return path.with_name(f"{path.name}.hashes-{_VERSION}.npy")


def _load(path: str | os.PathLike[str] | None) -> NDArray[Any]:
    """The hashes that are there; none where the file is missing, damaged or of something else."""
    nothing = np.empty(0, _PRINT)
    if path is None:
        return nothing
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return nothing
    return found if isinstance(found, np.ndarray) and found.dtype == _PRINT and found.ndim == 1 else nothing


def _save(path: str | os.PathLike[str], prints: NDArray[Any]) -> None:
    with atomic_write(path) as file:
        np.save(file, prints, allow_pickle=False)


def _read(
    images: Sequence[Any], batches: Sequence[Sequence[int]], workers: int | None, stack: ExitStack
) -> Iterator[tuple[int, list[NDArray[np.uint8] | str]]]:
    """(number of the batch, its thumbnails, or why there is none), in order."""
    reader = stack.enter_context(Reader())

    def read(rows: Sequence[int]) -> list[NDArray[np.uint8] | str]:
        found: list[NDArray[np.uint8] | str] = []
        for ref in (images[row] for row in rows):
            try:
                found.append(thumbnail(decode(reader.read(ref), method="scaled", target=2 * SIDE)))
            except BadImage as error:
                found.append(error.reason)
            except GuieError as error:
                found.append(str(error).removeprefix(f"{ref}: "))
        return found

    workers = threads(workers)
    results = ordered_map(read, batches, workers, 4 * workers)
    stack.callback(results.close)
    return enumerate(results)


# --- leaks


@dataclass(frozen=True, eq=False)
class Found:
    """The images of one side that the other side has too.

    Attributes:
        prints: the side.
        rows: the rows of its manifest [M], by group and row.
        groups: which group each belongs to [M]; images of one group are the same picture.
        kinds: number in `KINDS` [M]: the same bytes are there; nearly the same; nearly the same when mirrored.
        distances: bits that its hash, or that of an image of the same look, differs in from the nearest [M].
    """

    prints: Fingerprints
    rows: NDArray[np.int64]
    groups: NDArray[np.int64]
    kinds: NDArray[np.int64]
    distances: NDArray[np.int64]

    def count(self, kind: str) -> int:
        return int((self.kinds == KINDS.index(kind)).sum())


@dataclass(frozen=True, eq=False)
class Leaks:
    """What two sides have in common; groups are numbered 0..G-1 by their first image of `a`."""

    a: Found
    b: Found

    def __len__(self) -> int:
        """The number of groups."""
        return int(self.a.groups[-1]) + 1 if len(self.a.groups) else 0


def find_leaks(
    a: Fingerprints, b: Fingerprints, *, distance: int = DISTANCE, flipped: bool = False, workers: int | None = None
) -> Leaks:
    """The images of `a` that are in `b` as well, by their bytes or by their look.

    Images that cannot be read are compared by their bytes alone. Of images of one side that look the same only one is
    compared with the other side, so that many equal ones cost little. Memory: 3 kB for each image whose hash is near
    another's.

    Args:
        a, b: the sides.
        distance: bits that hashes may differ in, 0..64; up to 11 the search is fast.
        flipped: whether a mirrored image is the same picture.
        workers: threads that read images for the second look.

    Raises Interrupted on Ctrl-C.
    """
    first, number = distinct(np.concatenate([a.contents, b.contents]))
    both = np.intersect1d(number[: len(a)], number[len(a) :])
    # nodes of a graph: each content of a, and those of b after them
    total = len(first)
    edges = _Edges(total)
    edges.add(both, both, 0, np.zeros(len(both), np.int64))
    look = _Look(a, b, first, workers)
    for kind, sides in ((1, (a.hashes, b.hashes)), *([(2, (a.mirrored, b.hashes))] if flipped else [])):
        buckets_a, buckets_b = (
            _Buckets(*_once(numbers[prints.readable], hashes[prints.readable]))
            for numbers, prints, hashes in zip(np.split(number, [len(a)]), (a, b), sides, strict=True)
        )
        _near(buckets_a, buckets_b, distance, kind, look, edges)
    return edges.leaks(a, b, number)


class _Edges:
    """Which contents of a and b are the same picture; and what is the same within a side, where that matters."""

    def __init__(self, contents: int) -> None:
        self.contents = contents
        self._i: list[NDArray[np.int64]] = []
        self._j: list[NDArray[np.int64]] = []
        self.kind = np.full(2 * contents, len(KINDS))
        self.distance = np.full(2 * contents, 65)

    def add(self, i: NDArray[np.int64], j: NDArray[np.int64], kind: int, distances: NDArray[np.int64]) -> None:
        """Content i of a is content j of b."""
        for nodes in (i, j + self.contents):
            np.minimum.at(self.kind, nodes, kind)
            np.minimum.at(self.distance, nodes, distances)
        self._i.append(i)
        self._j.append(j + self.contents)

    def follow(self, leaders: NDArray[np.int64], members: NDArray[np.int64], kind: int) -> None:
        """Nodes that look like another of their side, and are therefore what it is, if that was found at all."""
        found = self.kind[leaders] < len(KINDS)
        leaders, members = leaders[found], members[found]
        np.minimum.at(self.kind, members, np.maximum(self.kind[leaders], kind))
        np.minimum.at(self.distance, members, self.distance[leaders])
        self._i.append(leaders)
        self._j.append(members)

    def leaks(self, a: Fingerprints, b: Fingerprints, number: NDArray[np.int64]) -> Leaks:
        component = _components(2 * self.contents, np.concatenate(self._i), np.concatenate(self._j))
        rows_a = np.flatnonzero(self.kind[number[: len(a)]] < len(KINDS))
        rows_b = np.flatnonzero(self.kind[number[len(a) :] + self.contents] < len(KINDS))
        nodes_a, nodes_b = number[rows_a], number[len(a) + rows_b] + self.contents
        seen, at = np.unique(component[nodes_a], return_index=True)
        rank = np.full(2 * self.contents, -1)
        rank[seen[np.argsort(at)]] = np.arange(len(seen))

        def side(prints: Fingerprints, rows: NDArray[np.int64], nodes: NDArray[np.int64]) -> Found:
            groups = rank[component[nodes]]
            order = np.lexsort((rows, groups))
            nodes = nodes[order]
            return Found(prints, rows[order], groups[order], self.kind[nodes], self.distance[nodes])

        return Leaks(side(a, rows_a, nodes_a), side(b, rows_b, nodes_b))


def _components(count: int, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest node that each of the nodes 0..count-1 is connected with by edges (i, j)."""
    label = np.arange(count)
    while True:
        low = np.minimum(label[i], label[j])
        new = label.copy()
        np.minimum.at(new, label[i], low)
        np.minimum.at(new, label[j], low)
        new = new[new]
        if np.array_equal(new, label):
            return label
        label = new


class _Look:
    """Thumbnails by content, read when they are asked for first."""

    def __init__(self, a: Fingerprints, b: Fingerprints, first: NDArray[np.int64], workers: int | None) -> None:
        self._a, self._b, self._first, self._workers = a, b, first, workers
        self._at = np.full(len(first), -1)
        self._thumbnails = np.empty((0, SIDE, SIDE, 3), np.uint8)
        self.good = np.ones(len(first), bool)

    def prepare(self, wanted: NDArray[np.int64]) -> None:
        wanted = wanted[self._at[wanted] < 0]
        if not len(wanted):
            return
        space = np.zeros((len(self._thumbnails) + len(wanted), SIDE, SIDE, 3), np.uint8)
        space[: len(self._thumbnails)] = self._thumbnails
        at = len(self._thumbnails)
        self._at[wanted] = np.arange(at, len(space))
        contents = iter(wanted.tolist())
        self._thumbnails = space
        images = _Both(self._a.manifest.images(), self._b.manifest.images())
        with ExitStack() as stack:
            stop = stack.enter_context(interruptible())
            progress = stack.enter_context(bar(len(wanted), "second look"))
            rows = [self._first[wanted[start : start + _BATCH]].tolist() for start in range(0, len(wanted), _BATCH)]
            for _, found in _read(images, rows, self._workers, stack):
                for each in found:
                    content = next(contents)
                    if isinstance(each, str):  # it was there when it was hashed
                        self.good[content] = False
                    else:
                        space[at] = each
                    at += 1
                progress.advance(len(found))
                if stop:
                    raise Interrupted("stopped; the hashes are kept, and the same command is faster the next time")

    def __call__(self, contents: NDArray[np.int64]) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = self._thumbnails[self._at[contents]]
        return found


class _Both(Sequence[Any]):
    def __init__(self, a: Sequence[Any], b: Sequence[Any]) -> None:
        self._a, self._b = a, b

    def __len__(self) -> int:
        return len(self._a) + len(self._b)

    def __getitem__(self, row: Any) -> Any:
        return self._a[row] if row < len(self._a) else self._b[row - len(self._a)]


class _Buckets:
    """Contents of one side by their hash, or by another number."""

    def __init__(self, contents: NDArray[np.int64], by: NDArray[Any]) -> None:
        order = np.argsort(by, kind="stable")
        self.contents = contents[order]
        self.values, self.starts, self.counts = np.unique(by[order], return_index=True, return_counts=True)

    def members(self, values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(number of the value, content) of all contents with one of those values."""
        blocks = list(_ranges(self.starts[values], self.counts[values]))
        if not blocks:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        number, position = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        return values[number], self.contents[position]


def _once(contents: NDArray[np.int64], hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Each content once, with its hash."""
    found, at = np.unique(contents, return_index=True)
    return found, hashes[at]


def _near(a: _Buckets, b: _Buckets, distance: int, kind: int, look: _Look, edges: _Edges) -> None:
    """Adds the pairs of contents that look the same."""
    first, second = _candidates(a, b, distance)
    mirrored = kind == 2
    if not mirrored:  # the same content on both sides, alone with its hash, needs no look
        alone = (a.counts[first] == 1) & (b.counts[second] == 1)
        alone &= a.contents[a.starts[first]] == b.contents[b.starts[second]]
        first, second = first[~alone], second[~alone]
    values_a, members_a = a.members(np.unique(first))
    values_b, members_b = b.members(np.unique(second))
    look.prepare(np.union1d(members_a, members_b))
    led_a = _led(values_a, members_a, look)
    led_b = _led(values_b, members_b, look)
    leaders_a = _Buckets(led_a[led_a == members_a], values_a[led_a == members_a])
    leaders_b = _Buckets(led_b[led_b == members_b], values_b[led_b == members_b])
    at_a, at_b = np.searchsorted(leaders_a.values, first), np.searchsorted(leaders_b.values, second)
    bits = np.bitwise_count(a.values[first] ^ b.values[second]).astype(np.int64)
    pairs = leaders_a.counts[at_a] * leaders_b.counts[at_b]
    with ExitStack() as stack:
        stop = stack.enter_context(interruptible())
        progress = stack.enter_context(bar(int(pairs.sum()), "compare", unit="pair"))
        for number, position in _ranges(np.zeros(len(pairs), np.int64), pairs):
            down, across = np.divmod(position, leaders_b.counts[at_b[number]])
            i = leaders_a.contents[leaders_a.starts[at_a[number]] + down]
            j = leaders_b.contents[leaders_b.starts[at_b[number]] + across]
            for start in range(0, len(i), 1024):
                part = slice(start, start + 1024)
                one, other = look(i[part]), look(j[part])
                same = (
                    same_picture(one[:, :, ::-1] if mirrored else one, other) & look.good[i[part]] & look.good[j[part]]
                )
                edges.add(i[part][same], j[part][same], kind, bits[number[part]][same])
                progress.advance(len(same))
                if stop:
                    raise Interrupted("stopped; the hashes are kept, and the same command is faster the next time")
    edges.follow(led_a, members_a, kind)
    edges.follow(led_b + edges.contents, members_b + edges.contents, kind)


def _candidates(a: _Buckets, b: _Buckets, distance: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The hashes of both sides that are near each other, by their numbers."""
    found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    with interruptible() as stop, bar(1000, "search hashes", unit="part", rated=False) as progress:
        for i, j, share in close_pairs(a.values, b.values, distance):
            if len(i):
                found.append((i, j))
            if (done := int(1000 * share) - progress.count) > 0:
                progress.advance(done)
            if stop:
                raise Interrupted("stopped; the hashes are kept, and the same command is faster the next time")
        progress.advance(1000 - progress.count)
    first, second = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return first, second


def _led(values: NDArray[np.int64], members: NDArray[np.int64], look: _Look) -> NDArray[np.int64]:
    """For each of the members [M] the one of the same value that it looks like: the first such, itself perhaps."""
    leader = members.copy()
    left = np.arange(len(members))  # members of a value stand side by side
    while len(left):
        first = np.ones(len(left), bool)
        first[1:] = values[left[1:]] != values[left[:-1]]
        heads = left[first][np.cumsum(first) - 1]
        same = left == heads
        for start in range(0, len(left), 1024):
            part = slice(start, start + 1024)
            rest = np.flatnonzero(~same[part]) + start
            same[rest] = same_picture(look(members[left[rest]]), look(members[heads[rest]]))
        leader[left[same]] = members[heads[same]]
        left = left[~same]
    return leader
