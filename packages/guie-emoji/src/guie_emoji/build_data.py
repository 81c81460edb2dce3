"""Builds the emoji set from the npm packages that publish the drawings: the same bytes at every run.

    python -m guie_emoji.build_data                  # download, build, write the data beside this file
    python -m guie_emoji.build_data --check          # build again and compare with what is there
    python -m guie_emoji.build_data --npm-dir DIR    # with tarballs that `npm pack` left in DIR

Needs `pip install 'guie-emoji[build]'` and, unless --npm-dir is given, npm. The bytes depend on the versions of Pillow,
its codecs and resvg-py; those that made the set are in data/provenance.json, and --check names the ones that differ.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import resvg_py
from PIL import Image, features

from guie_core import GuieError
from guie_core.files import atomic_write
from guie_datasets import tfrecord

from .dataset import DATA, SHARDS, TABLE

LONG_SIDE = 128  # px; larger drawings are reduced to it, smaller ones stay as they are
RENDER = 512  # px; vector drawings are drawn four times too large and reduced, which smooths the seams between shapes
VISIBLE = 32  # of 255; less opacity than this is the fringe of an edge or the tail of a shadow and is cropped away
QUALITY = 75
IMAGES_A_SHARD = 776  # eight shards of about 1.7 MB

SHOWN = (
    *("nauseated-face", "ghost", "fox", "cactus", "hamburger", "castle"),
    *("ambulance", "sun-with-face", "joystick", "saxophone", "television", "peace-symbol"),
)  # on the contact sheet


class Source(NamedTuple):
    """An npm package and what `npm view <package>@<version> dist.integrity` says of its tarball."""

    package: str
    version: str
    licence: str  # of the drawings, SPDX
    integrity: str

    @property
    def tarball(self) -> str:
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"


SOURCES = {
    "google": Source(
        "emoji-datasource-google",
        "16.0.0",
        "Apache-2.0",
        "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    ),
    "twitter": Source(
        "emoji-datasource-twitter",
        "16.0.0",
        "CC-BY-4.0",
        "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
    ),
    "fluent-3d": Source(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "MIT",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
    "fluent-flat": Source(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "MIT",
        "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "noto-v1": Source(
        "@iconify-json/noto-v1",
        "1.2.5",
        "Apache-2.0",
        "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
    "emojione": Source(
        "@iconify-json/emojione",
        "1.2.3",
        "CC-BY-4.0",
        "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    ),
}
VECTOR = ("fluent-flat", "noto-v1", "emojione")


class Character(NamedTuple):
    """An emoji as Unicode lists it: one class of the set."""

    codepoints: str  # "1F600", "2764-FE0F"
    name: str  # of the icon in the three vector sets: "grinning-face"
    group: str
    subgroup: str


class Picture(NamedTuple):
    """One image of the set."""

    emoji: Character
    label: int
    style: str
    jpeg: bytes


# --- packages


def fetch(source: Source, folder: Path) -> Path:
    """Downloads the package's tarball into `folder` with npm."""
    command = ["npm", "pack", "--silent", f"{source.package}@{source.version}", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise GuieError("npm is not installed. Install it, or name a folder of tarballs with --npm-dir") from error
    if done.returncode:
        raise GuieError(f"`{' '.join(command)}` failed:\n{done.stderr.strip()}")
    return folder / source.tarball


def verified(source: Source, path: Path) -> Path:
    """`path`, once its bytes are those that the table above names."""
    if not path.is_file():
        raise GuieError(f"{path} is missing. `npm pack {source.package}@{source.version}` downloads it")
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if integrity != source.integrity:
        raise GuieError(f"{path} is not {source.package} {source.version}: its integrity is {integrity}")
    return path


class Package:
    """Members of a tarball, those that `wanted` picks, in memory."""

    def __init__(self, path: Path, wanted: Callable[[str], bool]) -> None:
        self.path = path
        self.files: dict[str, bytes] = {}
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix("package/")
                if member.isfile() and wanted(name):
                    content = archive.extractfile(member)
                    assert content is not None  # it is a file
                    self.files[name] = content.read()

    def json(self, name: str) -> Any:
        return json.loads(self.files[name])


def read_packages(tarballs: Mapping[str, Path]) -> dict[str, Package]:
    """The packages by style, with the files that the set is made of."""
    wanted: dict[str, Callable[[str], bool]] = {
        "google": lambda name: name == "emoji.json" or name.startswith("img/google/64/"),
        "twitter": lambda name: name.startswith("img/twitter/64/"),
        "fluent-3d": lambda name: name.startswith("assets/"),
    }
    icons = {"icons.json", "chars.json"}
    return {style: Package(path, wanted.get(style, icons.__contains__)) for style, path in tarballs.items()}


# --- selection


def select(packages: Mapping[str, Package]) -> list[Character]:
    """The emoji that all six styles draw, flags and components left out, in Unicode's order.

    The vector sets name their icons by Unicode's short names; fluent-emoji-flat says which code points a name stands
    for. Icons that are only aliases of others do not count, since they may show something else.
    """
    names: dict[str, str] = packages["fluent-flat"].json("chars.json")
    icons = [set(packages[style].json("icons.json")["icons"]) for style in VECTOR]
    emoji = []
    for entry in sorted(packages["google"].json("emoji.json"), key=lambda entry: int(entry["sort_order"])):
        if entry["category"] in ("Flags", "Component"):
            continue
        codepoints: str = entry["unified"]
        name = names.get(codepoints.lower().replace("-fe0f", ""))
        if name is None or not all(name in there for there in icons):
            continue
        if all(_file(style, codepoints) in packages[style].files for style in ("google", "twitter", "fluent-3d")):
            emoji.append(Character(codepoints, name, entry["category"], entry["subcategory"]))
    return emoji


def _file(style: str, codepoints: str) -> str:
    name = codepoints.lower()
    return f"assets/{name}.webp" if style == "fluent-3d" else f"img/{style}/64/{name}.png"


# --- drawings


def raster(data: bytes) -> Image.Image:
    """A drawing that comes as an image file, RGBA with its own margins."""
    return Image.open(io.BytesIO(data)).convert("RGBA")


class Icons:
    """An Iconify set: shapes by name, in a view box."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.defaults = {"left": 0, "top": 0, "width": 16, "height": 16}
        self.defaults |= {key: data[key] for key in self.defaults if key in data}
        self.icons: Mapping[str, Mapping[str, Any]] = data["icons"]

    def picture(self, name: str) -> Image.Image:
        icon = self.icons[name]
        left, top, width, height = (icon.get(key, default) for key, default in self.defaults.items())
        scale = RENDER / max(width, height)
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=round(width * scale), height=round(height * scale), skip_system_fonts=True
        )
        return raster(png)


def finish(picture: Image.Image) -> bytes:
    """JPEG of an RGBA picture: on white, cropped to what is visible, at most LONG_SIDE px."""
    box = picture.getchannel("A").point([255 * (opacity >= VISIBLE) for opacity in range(256)]).getbbox()
    if box is None:
        raise GuieError("a drawing is empty")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    image = white.convert("RGB").crop(box)
    scale = LONG_SIDE / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=QUALITY, subsampling="4:2:0", optimize=True)
    return jpeg.getvalue()


def draw(packages: Mapping[str, Package], emoji: Sequence[Character]) -> list[Picture]:
    """Every emoji in every style, in the order of the set: mixed, so that each shard is a fair sample of the whole and
    the first image of a class is of any style. The digest of code points and style decides, hence no random numbers.
    """
    pictures = []
    for style, package in packages.items():
        print(f"{style}: {len(emoji)} drawings", file=sys.stderr, flush=True)
        icons = Icons(package.json("icons.json")) if style in VECTOR else None
        for label, one in enumerate(emoji):
            try:
                drawn = icons.picture(one.name) if icons else raster(package.files[_file(style, one.codepoints)])
                pictures.append(Picture(one, label, style, finish(drawn)))
            except (OSError, ValueError, GuieError) as error:
                raise GuieError(f"{package.path}: {one.name} ({one.codepoints}): {error}") from error
    return sorted(pictures, key=_place)


def _place(picture: Picture) -> bytes:
    return hashlib.sha256(f"{picture.emoji.codepoints} {picture.style}".encode()).digest()


# --- files


def write(pictures: Sequence[Picture], folder: Path) -> None:
    """Writes shards, table and provenance into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = [pictures[start : start + IMAGES_A_SHARD] for start in range(0, len(pictures), IMAGES_A_SHARD)]
    names = [f"guie-emoji-train-{number:02d}-{len(shard)}.tfrec" for number, shard in enumerate(shards)]
    for old in folder.glob(SHARDS):
        if old.name not in names:
            old.unlink()
    for name, shard in zip(names, shards, strict=True):
        tfrecord.write(folder / name, ((picture.jpeg, picture.label) for picture in shard))
    with atomic_write(folder / TABLE) as file:
        file.write(_table(pictures).encode())
    provenance = {
        "sources": {style: source._asdict() for style, source in SOURCES.items()},
        "made_with": made_with(),
        "sha256": {name: _sha256(folder / name) for name in [*names, TABLE]},
    }
    with atomic_write(folder / "provenance.json") as file:
        file.write((json.dumps(provenance, indent=2) + "\n").encode())


def _table(pictures: Sequence[Picture]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["class", "group", "subgroup", "style", "name", "codepoints"])
    for emoji, label, style, _ in pictures:
        table.writerow([label, emoji.group, emoji.subgroup, style, emoji.name, emoji.codepoints])
    return text.getvalue()


def made_with() -> dict[str, str]:
    """Versions of everything that decides about the bytes."""
    return {
        "pillow": version("pillow"),
        "libjpeg-turbo": str(features.version_feature("libjpeg_turbo")),
        "libwebp": str(features.version_module("webp")),
        "resvg-py": version("resvg-py"),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(built: Path, there: Path) -> list[str]:
    """Lines on what `there` lacks or holds otherwise than `built`; empty if the two are the same, byte for byte."""
    recorded = json.loads((there / "provenance.json").read_text()) if (there / "provenance.json").is_file() else {}
    names = sorted({path.name for folder in (built, there) for path in (*folder.glob(SHARDS), folder / TABLE)})
    lines = []
    for name in names:
        digests = [_sha256(folder / name) if (folder / name).is_file() else "missing" for folder in (built, there)]
        if len({*digests, recorded.get("sha256", {}).get(name, "not recorded")}) > 1:
            lines.append(f"{name}: built {digests[0][:12]}, there {digests[1][:12]}")
    if lines:
        then, now = recorded.get("made_with", {}), made_with()
        lines += [
            f"made with {tool} {then.get(tool)}, here is {now[tool]}" for tool in now if then.get(tool) != now[tool]
        ]
    return lines


def contact_sheet(pictures: Sequence[Picture], path: Path, *, columns: int = 2, cell: int = 64) -> None:
    """A JPEG of a few emoji, each in all styles."""
    styles, rows = list(SOURCES), len(SHOWN) // columns
    block = len(styles) * cell + cell // 2
    sheet = Image.new("RGB", (columns * block - cell // 2, rows * cell), "white")
    for picture in pictures:
        if picture.emoji.name in SHOWN:
            column, row = divmod(SHOWN.index(picture.emoji.name), rows)
            image = Image.open(io.BytesIO(picture.jpeg))
            image.thumbnail((cell - 8, cell - 8), Image.Resampling.LANCZOS)
            left = column * block + styles.index(picture.style) * cell
            sheet.paste(image, (left + (cell - image.width) // 2, row * cell + (cell - image.height) // 2))
    with atomic_write(path) as file:
        sheet.save(file, "JPEG", quality=85)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the emoji set from the npm packages.")
    parser.add_argument("--npm-dir", type=Path, help="folder with the packages' tarballs; default: download them")
    parser.add_argument("--output", type=Path, default=DATA, help="folder of the data set")
    parser.add_argument("--check", action="store_true", help="write nothing; compare what is there with a new build")
    parser.add_argument("--contact-sheet", type=Path, help="also write a JPEG that shows a few emoji in all styles")
    options = parser.parse_args(arguments)
    try:
        if options.check and not options.output.is_dir():
            raise GuieError(f"{options.output}: there is no such folder to check")
        with tempfile.TemporaryDirectory() as temporary:
            scratch = Path(temporary)
            tarballs = {
                style: verified(source, options.npm_dir / source.tarball if options.npm_dir else fetch(source, scratch))
                for style, source in SOURCES.items()
            }
            packages = read_packages(tarballs)
            pictures = draw(packages, select(packages))
            if options.contact_sheet:
                contact_sheet(pictures, options.contact_sheet)
            if not options.check:
                write(pictures, options.output)
                print(f"{options.output}: {len(pictures)} images")
                return 0
            write(pictures, scratch / "data")
            lines = differences(scratch / "data", options.output)
    except GuieError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if lines:
        print(f"error: {options.output} is not what this script builds:", *lines, sep="\n  ", file=sys.stderr)
        return 1
    print(f"{options.output}: the same bytes, {len(pictures)} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
