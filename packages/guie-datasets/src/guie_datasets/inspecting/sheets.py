"""Contact sheets: some images of some classes, as a page or as one picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from guie_core import GuieError, Interrupted, UsageError
from guie_core.files import atomic_write
from guie_core.interrupt import interruptible
from guie_core.processors import threads
from guie_core.progress import bar
from guie_core.wording import did_you_mean, listing, plural
from guie_datasets.checks import check_seed
from guie_datasets.images.decoding import decode
from guie_datasets.images.reading import Reader, ordered_map
from guie_datasets.inspecting.pages import write_page
from guie_datasets.inspecting.pictures import encode, picture, signed
from guie_datasets.manifest import Manifest, column_is

if TYPE_CHECKING:
    from numpy.typing import NDArray

PICTURES = 6_000_000  # characters that the pictures of a page may take
SIDE = 128  # pixels of a tile

#: Suffixes of pictures that can be written; anything else is refused, but for .html.
_COMMAND = "guie data show"
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WebP"}
_LIMITS = {"JPEG": 65_500, "WebP": 16_383}  # pixels a side, of libjpeg and libwebp
_PIXELS = 200_000_000  # that a picture may have


@dataclass(frozen=True)
class Tile:
    """An image on a sheet.

    row: of the manifest. place: of its bytes; file: the end of that, which is shown. width, height, split: as in the
    manifest. image: uint8 [3, h, w], small; None where it cannot be shown, and the reason why.
    """

    row: int
    place: str
    file: str
    width: int
    height: int
    split: str = ""
    image: NDArray[np.uint8] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Sheet:
    """A class: its label, what it is called, how many images it has, and those that are shown."""

    label: int
    name: str
    images: int
    tiles: Sequence[Tile]

    @property
    def about(self) -> str:
        """ "class 7, 12 images"."""
        return f"class {self.label}, {plural(self.images, 'image')}"


def choose(
    manifest: Manifest,
    *,
    classes: int = 12,
    images: int = 8,
    only: Sequence[str] = (),
    split: str | None = None,
    source: str | None = None,
    seed: int = 0,
) -> list[NDArray[np.int64]]:
    """The rows to show, class by class: at most `classes` of them by rising label, at most `images` of each, in order.

    Args:
        manifest: what is chosen from.
        classes, images: how many; drawn with `seed`, the same for the same manifest.
        only: these classes, by name or label, in this order and all of them.
        split, source: images of these alone.

    Raises UsageError for a class, split or source that there is not, naming near ones, and for a seed below 0.
    """
    rows = np.arange(len(manifest))
    for name, value in (("split", split), ("source", source)):
        if value is not None:
            rows = rows[column_is(manifest, name, value)[rows]]
    label = manifest.column("label")
    check_seed(seed)
    rng = np.random.default_rng(seed)
    order = rows[np.argsort(label[rows], kind="stable")]
    labels, starts = np.unique(label[order], return_index=True)
    if only:
        chosen = [int(np.searchsorted(labels, each)) for each in _labels(manifest, only, labels)]
    else:
        chosen = np.sort(rng.permutation(len(labels))[:classes]).tolist()
    ends = np.append(starts[1:], len(order))
    return [np.sort(rng.permutation(order[starts[at] : ends[at]])[:images]) for at in chosen]


def _labels(manifest: Manifest, only: Sequence[str], there: NDArray[np.int64]) -> list[int]:
    """The labels of classes given by name or number."""
    codes, names = manifest._codes("name")
    label = manifest.column("label")
    found: list[int] = []
    for each in only:
        if each and each in names:
            said = np.unique(label[codes == names.index(each)])
        elif each.isdecimal():
            said = np.array([int(each)])
        else:
            named = [name for name in names if name]
            hint = did_you_mean(each, named) or (
                f" There are, for example: {listing(named, 8)}"
                if named
                else " This manifest has labels alone, no names"
            )
            raise UsageError(f"there is no class {each!r}.{hint}")
        said = said[np.isin(said, there)]
        if not len(said):
            raise UsageError(f"class {each} has no image here (labels are {_range(there)})")
        found += said.tolist()
    return list(dict.fromkeys(found))


def _range(labels: NDArray[np.int64]) -> str:
    return f"{labels[0]}..{labels[-1]}" if len(labels) else "nothing: no image is left"


def sheets(
    manifest: Manifest, groups: Sequence[NDArray[np.int64]], *, side: int = SIDE, workers: int | None = None
) -> list[Sheet]:
    """The chosen rows as sheets, their images read and made small; those that cannot be are tiles with a reason.

    Raises Interrupted on Ctrl-C.
    """
    rows = np.concatenate([np.empty(0, np.int64), *groups])
    shown = iter(tiles(manifest, rows, side=side, workers=threads(workers)))
    label = manifest.column("label")
    found = []
    for group in groups:
        its = [next(shown) for _ in group]
        number = int(label[group[0]])
        name = text(manifest, "name", int(group[0])) or f"class {number}"
        found.append(Sheet(number, name, int((label == number).sum()), its))
    return found


def tiles(manifest: Manifest, rows: NDArray[np.int64], *, side: int = SIDE, workers: int = 0) -> list[Tile]:
    """What is shown of each row, in order."""
    images = manifest.images()
    widths, heights = manifest.column("width"), manifest.column("height")

    def look(row: int) -> Tile:
        ref = images[row]
        about: dict[str, Any] = {
            "place": str(ref),
            "file": os.path.basename(str(ref)),
            "width": int(widths[row]),
            "height": int(heights[row]),
            "split": text(manifest, "split", row),
        }
        try:
            small = picture(decode(reader.read(ref), method="scaled", target=side), side)
        except GuieError as error:
            return Tile(row, **about, reason=str(error).removeprefix(f"{ref}: "))
        return Tile(row, **about, image=np.asarray(small).transpose(2, 0, 1))

    found = []
    with interruptible() as stop, Reader() as reader, bar(len(rows), "read") as progress:
        results = ordered_map(look, rows.tolist(), workers, 4 * max(workers, 1))
        try:
            for tile in results:
                found.append(tile)
                progress.advance()
                if stop:
                    raise Interrupted("stopped; nothing was written")
        finally:
            results.close()
    return found


def text(manifest: Manifest, column: str, row: int) -> str:
    """The text in a column, "" for none."""
    value = manifest._chunk(column)[row].as_py()
    return str(value) if value else ""


def write_sheets(
    path: str | os.PathLike[str], found: Sequence[Sheet], *, name: str, summary: str = "", command: str = ""
) -> None:
    """The sheets as a page (.html), or as a picture: .jpg, .png or .webp.

    Raises UsageError for another suffix, and for more images than a picture can have; GuieError if the disk is full.
    """
    path = Path(path)
    check_suffix(path)
    if path.suffix.lower() in FORMATS:
        check_fits(path, [len(sheet.tiles) for sheet in found])
        drawn = contact_sheet(found)
        with atomic_write(path) as file:
            drawn.save(file, FORMATS[path.suffix.lower()], quality=90, exif=signed(_COMMAND))
        return
    seen = {tile.row: tile.image for sheet in found for tile in sheet.tiles if tile.image is not None}
    pictures = encode(list(seen), seen.__getitem__, PICTURES)
    fields: dict[str, Any] = {
        "name": name,
        "summary": summary,
        "sheets": found,
        "pictures": pictures,
        "command": command,
    }
    write_page(path, "show.html", made_by=_COMMAND, **fields)


def check_suffix(path: Path) -> None:
    """Raises UsageError if `write_sheets` could not write that."""
    if path.suffix.lower() not in (".html", *FORMATS):
        raise UsageError(f"--output {path}: it must end in .html, or in {listing(FORMATS)} for a picture")


_GAP, _HEAD, _FOOT = 10, 26, 17  # pixels: between tiles, of a class's name, of the line below a tile


def _layout(images: Sequence[int], side: int) -> tuple[int, list[int], int, int]:
    """Of classes with so many images each: columns, lines of each class, width and height of the picture."""
    columns = min(max(images, default=1), 12)
    lines = [-(-count // columns) for count in images]
    height = _GAP + sum(_HEAD + count * (side + _FOOT + _GAP) for count in lines)
    return columns, lines, _GAP + columns * (side + _GAP), max(height, 2 * _GAP)


def check_fits(path: Path, images: Sequence[int], *, side: int = SIDE) -> None:
    """Raises UsageError if classes with so many images each are too much for a picture of that suffix."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        return
    _, _, width, height = _layout(images, side)
    limit, remedy = _LIMITS.get(FORMATS[suffix]), "ask for fewer (--classes, --images), or for a page (.html)"
    if limit and height > limit:
        raise UsageError(
            f"--output {path}: a {suffix} picture has at most {limit:,} pixels a side, and this one would be "
            f"{height:,} high; {remedy}"
        )
    if width * height > _PIXELS:
        raise UsageError(f"--output {path}: so many images don't fit into one picture; {remedy}")


def contact_sheet(found: Sequence[Sheet], *, side: int = SIDE) -> Image.Image:
    """One picture, as `check_fits` allows it, of all sheets: a row of tiles for each class, its name above."""
    gap, head, foot = _GAP, _HEAD, _FOOT
    columns, lines, width, height = _layout([len(sheet.tiles) for sheet in found], side)
    sheet_image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet_image)
    top = gap
    for sheet, count in zip(found, lines, strict=True):
        used = _write(draw, (gap, top), sheet.name, 15, "#211f1b", width // 2)
        _write(draw, (gap + used + 8, top + 3), sheet.about, 12, "#67625a", width - used - 3 * gap)
        top += head
        for number, tile in enumerate(sheet.tiles):
            down, right = divmod(number, columns)
            corner = (gap + right * (side + gap), top + down * (side + foot + gap))
            _paste(sheet_image, draw, tile, corner, side)
            used = _write(draw, (corner[0], corner[1] + side + 2), f"{tile.width} x {tile.height}", 11, "#67625a", side)
            left = side - used - 6
            _write(draw, (corner[0] + used + 6, corner[1] + side + 2), _end(tile.file, left), 11, "#a9a398", left)
        top += count * (side + foot + gap)
    return sheet_image


def _paste(onto: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, corner: tuple[int, int], side: int) -> None:
    left, top = corner
    box = (left, top, left + side - 1, top + side - 1)
    if tile.image is None:
        draw.rectangle(box, fill="#fbe9e6", outline="#b3311f")
        for line, words in enumerate(_wrapped(f"cannot be shown: {tile.reason}", side - 12)[:8]):
            _write(draw, (left + 6, top + 6 + 14 * line), words, 11, "#b3311f", side - 12)
        return
    small = picture(tile.image, side)
    onto.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
    draw.rectangle(box, outline="#e5e0d6")


def _end(words: str, width: int) -> str:
    """The text, or as much of its end as fits: that is where names of files differ."""
    shown = words
    while shown and _font(11, "x").getlength(f"...{shown}" if shown != words else shown) > width:
        shown = shown[1:]
    return shown if shown == words else f"...{shown}"


def _wrapped(words: str, width: int) -> list[str]:
    lines: list[str] = [""]
    for letter in words:
        if _font(11, letter).getlength(lines[-1] + letter) > width:
            lines.append("")
        lines[-1] += letter
    return [line.strip() for line in lines]


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], words: str, size: int, colour: str, width: int) -> int:
    """Writes as much of a line as fits, letter by letter in the font that has it; returns how wide that is."""
    x = at[0]
    for run in _runs(words, size):
        font = _font(size, run[0])
        while run and x + font.getlength(run) > at[0] + width:
            run = run[:-1]
        draw.text((x, at[1]), run, font=font, fill=colour)
        x += font.getlength(run)
    return round(x - at[0])


def _runs(words: str, size: int) -> list[str]:
    """The line in pieces of one font each."""
    runs: list[str] = []
    for letter in words:
        if runs and _font(size, runs[-1][0]) is _font(size, letter):
            runs[-1] += letter
        else:
            runs.append(letter)
    return runs


# Pillow brings a font for Latin letters; those of other scripts are on most machines
_FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf"),
    *("wqy-zenhei.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "Arial Unicode.ttf", "PingFang.ttc"),
    *("Hiragino Sans GB.ttc", "msyh.ttc", "simsun.ttc", "unifont.ttf"),
)


@cache
def _fonts(size: int) -> list[ImageFont.FreeTypeFont]:
    first = ImageFont.load_default(size)
    found = [first] if isinstance(first, ImageFont.FreeTypeFont) else []
    for name in _FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return found


@lru_cache(maxsize=20_000)
def _font(size: int, letter: str) -> Any:
    """The first font that can draw the letter; the first of all where none can."""
    fonts = _fonts(size)
    has: Callable[[ImageFont.FreeTypeFont], bool] = lambda font: (  # noqa: E731
        letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010fffe"))
    )
    return next((font for font in fonts if has(font)), fonts[0] if fonts else ImageFont.load_default(size))
