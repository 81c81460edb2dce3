"""What a manifest holds, in figures: images, classes, sizes, bytes, what is there twice."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from guie_core.wording import plural, size
from guie_datasets.checks import check_seed
from guie_datasets.images.signatures import LENGTH, signature
from guie_datasets.inspecting.charts import Chart, curve, histogram
from guie_datasets.inspecting.pages import percent, write_page
from guie_datasets.inspecting.similarity import contents, distinct
from guie_datasets.manifest import Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from guie_datasets.rows import ImageRef

#: Images whose files are looked at for bytes and formats; of more images it is a sample.
SAMPLE = 2000

_QUANTILES = {"smallest": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "largest": 1.0}
_PARTS = ("source", "category", "split", "role")


@dataclass(frozen=True)
class Part:
    """The images that share a value of a column. images, classes: how many."""

    name: str
    images: int
    classes: int


@dataclass(frozen=True)
class PerClass:
    """Images a class: the smallest, median, mean and largest number, and how many classes have few.

    top: the share of all images that the largest tenth of the classes holds.
    """

    smallest: int
    median: float
    mean: float
    largest: int
    single: int  # classes with 1 image
    below_5: int
    below_20: int
    top: float


@dataclass(frozen=True)
class Shapes:
    """Shares of the images: as wide as high, higher than wide, with a side more than twice the other."""

    square: float
    portrait: float
    beyond_1_to_2: float


@dataclass(frozen=True)
class Storage:
    """The encoded images on disk.

    bytes: in all; an estimate if `exact` is false. formats: share of each of the images looked at, by their first
    bytes. looked_at: how many that were; missing: how many of them were not there.
    """

    bytes: int
    exact: bool
    formats: Mapping[str, float]
    looked_at: int
    missing: int


@dataclass(frozen=True)
class Statistics:
    """Figures of a manifest.

    Attributes:
        images, classes: how many.
        parts: by column ("source", "category", "split", "role"), those with a value other than "".
        per_class, shapes, storage: see there; None without images.
        quantiles: of "width", "height", "megapixels" and "aspect" (width / height), by name of the quantile.
        duplicates: images whose bytes an earlier row has; conflicts: those of them with another label.
        findings: what preparing the data found wrong, in words. made_by: what prepared them.
        counts: images of each class, falling. sizes, aspects: histograms, see `charts`.
    """

    images: int
    classes: int
    parts: Mapping[str, Sequence[Part]]
    per_class: PerClass | None
    shapes: Shapes | None
    storage: Storage | None
    quantiles: Mapping[str, Mapping[str, float]]
    duplicates: int
    conflicts: int
    findings: str
    made_by: str
    counts: NDArray[np.int64] = field(repr=False, compare=False)
    sizes: Mapping[str, NDArray[np.int64]] = field(repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Plain values, without the histograms."""
        found = asdict(self)
        del found["counts"], found["sizes"]
        return found


def statistics(manifest: Manifest, *, seed: int = 0) -> Statistics:
    """The figures of a manifest, in a few passes over its columns: five million rows take seconds.

    No image is decoded. Bytes and formats come from `SAMPLE` files, drawn with `seed`, where there are more; the bytes
    of images in shards are known exactly.

    Raises UsageError for a seed below 0.
    """
    check_seed(seed)
    label = manifest.column("label")
    numbers, of = np.unique(label, return_inverse=True)
    counts = np.sort(np.bincount(of, minlength=len(numbers)))[::-1]
    width, height = (manifest.column(name).astype(np.int64) for name in ("width", "height"))
    measures = {
        "width": width,
        "height": height,
        "megapixels": width * height / 1e6,
        "aspect": width / np.maximum(height, 1),
    }
    first, number = distinct(contents(manifest))
    repeated = np.ones(len(label), bool)
    repeated[first] = False
    some = len(label) > 0
    return Statistics(
        images=len(label),
        classes=len(numbers),
        parts={name: found for name in _PARTS if (found := _parts(manifest, name, of, len(numbers)))},
        per_class=_per_class(counts) if some else None,
        shapes=_shapes(width, height) if some else None,
        storage=_storage(manifest, seed) if some else None,
        quantiles={name: _quantiles(values) for name, values in measures.items()} if some else {},
        duplicates=int(repeated.sum()),
        conflicts=int((repeated & (label != label[first[number]])).sum()) if some else 0,
        findings=str(manifest.provenance.get("findings", "")),
        made_by=str(manifest.provenance.get("made_by", "")),
        counts=counts,
        sizes={"side": _binned(np.sqrt(width * height), SIDES), "aspect": _binned(measures["aspect"], ASPECTS)},
    )


# borders of the histograms; what lies beyond counts in the last bin
SIDES = 2.0 ** np.arange(4, 13.01, 0.5)  # 16 to 8192 pixels
ASPECTS = 2.0 ** np.arange(-2.125, 2.13, 0.25)  # 1:4 to 4:1, with squares in the middle of a bin


def _binned(values: NDArray[Any], borders: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.histogram(np.clip(values, borders[0], borders[-1]), borders)[0]


def _parts(manifest: Manifest, name: str, label: NDArray[np.int64], classes: int) -> list[Part]:
    """What a column divides the images into, in order of first appearance; nothing where all are ""."""
    codes, names = manifest._codes(name)
    if not any(names):
        return []
    images = np.bincount(codes, minlength=len(names))
    pairs = np.unique(codes.astype(np.int64) * max(classes, 1) + label)
    of = np.bincount(pairs // max(classes, 1), minlength=len(names))
    return [Part(text, int(count), int(each)) for text, count, each in zip(names, images, of, strict=True)]


def _per_class(counts: NDArray[np.int64]) -> PerClass:
    return PerClass(
        smallest=int(counts[-1]),
        median=float(np.median(counts)),
        mean=float(counts.mean()),
        largest=int(counts[0]),
        single=int((counts == 1).sum()),
        below_5=int((counts < 5).sum()),
        below_20=int((counts < 20).sum()),
        top=float(counts[: -(-len(counts) // 10)].sum() / counts.sum()),
    )


def _shapes(width: NDArray[np.int64], height: NDArray[np.int64]) -> Shapes:
    beyond = np.maximum(width, height) > 2 * np.minimum(width, height)
    return Shapes(float((width == height).mean()), float((height > width).mean()), float(beyond.mean()))


def _quantiles(values: NDArray[Any]) -> dict[str, float]:
    found = np.quantile(values, list(_QUANTILES.values()))
    return {name: round(float(value), 4) for name, value in zip(_QUANTILES, found, strict=True)}


def _storage(manifest: Manifest, seed: int) -> Storage:
    lengths = manifest.column("length")
    whole = np.flatnonzero(lengths < 0)  # their size is known to the file system alone
    images = manifest.images()
    rng = np.random.default_rng(seed)
    looked_at = np.sort(rng.choice(len(lengths), min(SAMPLE, len(lengths)), replace=False)).tolist()
    heads = [_head(images[row]) for row in looked_at]
    formats = Counter(_format(head) for head in heads if head is not None)
    there = max(sum(formats.values()), 1)
    known = int(lengths[lengths >= 0].sum())
    asked = whole if len(whole) <= SAMPLE else np.sort(rng.choice(whole, SAMPLE, replace=False))
    sizes = [found for row in asked.tolist() if (found := _size(images[row].path)) is not None]
    estimate = round(sum(sizes) / max(len(sizes), 1) * len(whole)) if len(whole) > len(asked) else sum(sizes)
    return Storage(
        bytes=known + estimate,
        exact=len(asked) == len(whole),
        formats={name: count / there for name, count in formats.most_common()},
        looked_at=len(heads),
        missing=heads.count(None),
    )


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _head(ref: ImageRef) -> bytes | None:
    """The first bytes of an image, None if it is not there; b"" where they cannot be had without unpacking a shard."""
    if ref.compression:
        return b"" if os.path.exists(ref.path) else None
    try:
        with open(ref.path, "rb") as file:
            file.seek(ref.offset)
            return file.read(LENGTH)
    except OSError:
        return None


def _format(head: bytes) -> str:
    if not head:
        return "packed"
    found = signature(head)
    return found.name if found else "other"


# --- in words and pictures


def facts(found: Statistics, manifest: str = "MANIFEST") -> list[tuple[str, str]]:
    """(what, how much) of everything, for people. manifest: its path as a command takes it, for hints."""
    said = [("images", f"{found.images:,}"), ("classes", f"{found.classes:,}")]
    if each := found.per_class:
        said += [
            (
                "images a class",
                f"{each.smallest:,} to {each.largest:,}; median {each.median:g}, mean {each.mean:,.1f}",
            ),
            (
                "small classes",
                f"{each.single:,} with 1 image, {each.below_5:,} below 5, {each.below_20:,} below 20",
            ),
            ("imbalance", f"the largest tenth of the classes holds {percent(each.top)} of the images"),
        ]
    if found.quantiles:
        widths, heights = (found.quantiles[name] for name in ("width", "height"))
        said += [
            ("size", f"median {widths['median']:g} x {heights['median']:g} pixels"),
            (
                "sides",
                f"width {widths['smallest']:g} to {widths['largest']:g}, "
                f"height {heights['smallest']:g} to {heights['largest']:g}",
            ),
        ]
    if shapes := found.shapes:
        said.append(
            (
                "shapes",
                f"{percent(shapes.square)} square, {percent(shapes.portrait)} portrait, "
                f"{percent(shapes.beyond_1_to_2)} beyond 1:2",
            )
        )
    if stored := found.storage:
        formats = ", ".join(f"{name} {percent(share)}" for name, share in stored.formats.items())
        sampled = stored.looked_at < found.images
        if formats:
            said.append(("on disk", f"{'' if stored.exact else 'about '}{size(stored.bytes)}"))
            said.append(("formats", f"{formats}{f' (of {stored.looked_at:,} looked at)' if sampled else ''}"))
        else:
            said.append(("on disk", "nothing is where the manifest says"))
        if stored.missing:
            of = plural(stored.looked_at, "image")
            said.append(("not there now", f"{stored.missing:,} of {of} looked at; which: guie data verify {manifest}"))
    twice = plural(found.duplicates, "image")
    said.append(("exact duplicates", f"{twice}, {found.conflicts:,} of them with another label"))
    said.append(("found by prepare", found.findings or "nothing wrong"))
    return said


def charts(found: Statistics) -> list[Chart]:
    """The plots of the page."""
    if not found.images or not found.per_class:
        return []
    counts = found.counts
    # a point for each class, or as many as a chart can show
    at = np.unique(np.linspace(0, len(counts) - 1, min(len(counts), 300)).round().astype(np.int64))
    largest = int(counts[0])
    borders = _borders(largest)
    held = np.histogram(counts, [*borders, borders[-1] * 2])[0]
    few = f"{found.per_class.below_5:,} of {found.classes:,} classes have fewer than 5 images."
    share = np.cumsum(counts) / counts.sum()
    tenths = [int(100 * share[max(-(-len(counts) * tenth // 10) - 1, 0)]) for tenth in range(1, 11)]
    gained = np.diff([0, *tenths]).tolist()
    aspects = {-2.0: "1:4", -1.0: "1:2", 0.0: "1:1", 1.0: "2:1", 2.0: "4:1"}
    return [
        curve(
            "Images a class, sorted",
            counts[at].tolist(),
            found.classes,
            "classes, largest first",
            f"Images a class, sorted: from {largest:,} down to {int(counts[-1]):,}.",
        ),
        histogram(
            "Classes by their images",
            held.tolist(),
            [*(f"{border:,}" for border in borders), ""] if len(borders) <= 8 else _every(borders),
            "images of the class, from",
            f"Classes by number of images: {few}",
        ),
        histogram(
            "Images in each tenth of the classes, %",
            gained,
            ["", *(f"{10 * tenth}" if tenth % 2 == 0 else "" for tenth in range(1, 11))],
            "% of the classes, largest first",
            f"Share of the images in each tenth of the classes, in %: {', '.join(map(str, gained))}.",
        ),
        histogram(
            "Size",
            found.sizes["side"].tolist(),
            [f"{border:.0f}" if power % 4 == 0 else "" for power, border in enumerate(SIDES)],
            "root of width x height, pixels",
            f"Sizes: median {found.quantiles['width']['median']:g} x {found.quantiles['height']['median']:g} pixels.",
        ),
        histogram(
            "Aspect",
            found.sizes["aspect"].tolist(),
            [aspects.get(power, "") for power in np.log2(ASPECTS[:-1] * 2**0.125).round(3).tolist()],
            "width : height",
            f"Aspects: median {found.quantiles['aspect']['median']:.2f} (width / height).",
        ),
    ]


def _borders(largest: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... as far as `largest`."""
    found = [step * 10**power for power in range(len(str(largest))) for step in (1, 2, 5)]
    return [border for border in found if border <= largest]


def _every(borders: Iterable[int]) -> list[str]:
    """Powers of ten alone."""
    return [*(f"{border:,}" if str(border).strip("0") == "1" else "" for border in borders), ""]


def write_statistics(
    path: str | os.PathLike[str], found: Statistics, *, name: str, command: str, manifest: str = "MANIFEST"
) -> None:
    """The page: figures, plots, and tables of parts and sizes; manifest as for `facts`.

    Raises GuieError if the disk is full.
    """
    write_page(
        path,
        "stats.html",
        made_by="guie data stats",
        found=found,
        facts=facts(found, manifest),
        charts=charts(found),
        name=name,
        command=command,
        limit=100,
    )
