"""WebDataset's tar shards as a data set, read where they lie: nothing is unpacked."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from guie_core import GuieError, UsageError
from guie_core.wording import did_you_mean, listing, plural
from guie_datasets.compressed import PackedError, PackedFile
from guie_datasets.numbering import gaps, incomplete
from guie_datasets.places import absolute, is_text, printable
from guie_datasets.rows import Dataset, ImageRef, LeftOut, Row, open_file
from guie_datasets.sets.folders import IMAGE_SUFFIXES

_BLOCK = 512
_MAX_HEADER = 1 << 20  # bytes of an extended header: more are no name
_MAX_TEXT = 1 << 24  # bytes of a component that is read
_REGULAR, _DIRECTORY, _EXTENDED = (b"\0", b"0", b"7"), b"5", (b"x", b"g", b"L", b"K")
_WITHOUT_DATA = {b"1": "a hard link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
_META = re.compile(r"__[^/]*__($|/)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_NUMBER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_LOOKED_AT = 100  # samples whose labels tell whether labels are numbers
_CANNOT = {b"BZh": "bzip2", b"\xfd7z": "xz", b"\x28\xb5\x2f": "zstd", b"PK\x03": "zip"}


class WebDataset(Dataset):
    """Samples in tar shards, as the `webdataset` library writes them: `key.jpg`, `key.cls`, one after the other.

    files: paths, in which `{000000..000009}` and `*` stand for several. Those in braces must all be there; those that a
    `*` matches come in the order of their names. Shards may be packed by gzip.
    images: suffixes of the image, of which the first that a sample has is taken; default: jpg, jpeg, png, webp, and all
    others that are read.
    label: the suffix of the label, a whole number or the name of a class as text.
    fields: what to take from the sample's `json` component instead, `dict(label="class_id", category="about.kind")`,
    "." for what is nested; label, source, category, split, role and name can be had.
    classes: texts that may stand for labels; each is its place in the list, and the row's name.
    source: for samples whose JSON says nothing of it; default: the first shard's name up to its number.
    category: for samples whose JSON says nothing of it.
    complete: whether shards that the numbers in names tell to be missing (of those that a `*` matches), and a shard
    that breaks off, are an error, since nobody can tell how much is lost; otherwise what is there is used, and a
    broken shard is a finding.

    Neighbours in a shard are one sample when their names are the same up to the first dot of the file name. Suffixes
    are compared in lower case, as the library does. Without `classes`, and when most labels of the first hundred
    samples are no numbers, each different text is a class: its label is its number in the order of all of them, by code
    point, which takes a pass over the shards.

    Samples without a label and with two components of a name are bad. Samples without an image, links, devices and
    files without a suffix are left out.

    `rows()` raises GuieError for shards that are not there and files that are no tar files.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        *,
        images: Sequence[str] = (),
        label: str = "cls",
        fields: Mapping[str, str] | None = None,
        classes: Sequence[str] = (),
        source: str = "",
        category: str = "",
        complete: bool = True,
    ) -> None:
        given = [files] if isinstance(files, str | os.PathLike) else list(files)
        if not given:
            raise UsageError("files is empty: name at least one tar file")
        if isinstance(images, str) or isinstance(classes, str):
            raise UsageError("images and classes are lists")
        fields = dict(fields or {})
        for name in fields:
            if name not in _FIELDS:
                hint = did_you_mean(name, _FIELDS) or f" They are {', '.join(_FIELDS)}"
                raise UsageError(f"fields says where to find {name!r}, which a row has not.{hint}")
        self.files = [os.fspath(absolute(file)) for file in given]
        self.images = [suffix.lower().lstrip(".") for suffix in images] or list(_SUFFIXES)
        self.label = label.lower().lstrip(".")
        self.fields = fields
        self.classes = list(classes)
        self.source = source or common_name(Path(self.files[0]))
        self.category = category
        self.complete = complete
        self._places = {name: number for number, name in reversed(list(enumerate(self.classes)))}
        self._left_out: list[LeftOut] = []

    def rows(self) -> Iterator[Row]:
        left_out: list[LeftOut] = []
        self._left_out = left_out
        paths = self.sources()
        places = self._places or self._texts(paths)
        for path in paths:
            with Shard(path) as shard:
                for sample in _samples(shard, left_out, self.complete):
                    place = f"{path}, sample {sample.key}"
                    image = next((sample.parts[suffix] for suffix in self.images if suffix in sample.parts), None)
                    if image is None:
                        has = listing(sample.parts, 5)
                        left_out.append(LeftOut(place, f"a sample without an image; it has {has}", loud=True))
                        continue
                    try:
                        about = self._about(shard, sample)
                        label, name = self._number(self._label(about.get("label"), shard, sample), places)
                        said = {field: _said(about.get(field)) for field in _FIELDS[1:]}
                    except ValueError as error:
                        left_out.append(LeftOut(place, str(error), bad=True))
                        continue
                    yield Row(
                        ImageRef(str(path), image.offset, image.size, shard.compression),
                        label,
                        said["source"] or self.source,
                        said["category"] or self.category,
                        said["split"],
                        said["role"],
                        said["name"] or name,
                    )

    def left_out(self) -> Sequence[LeftOut]:
        return self._left_out

    def sources(self) -> Sequence[Path]:
        """The shards, in order. Raises GuieError if some are not there."""
        found: list[str] = []
        for pattern in self.files:
            for path in expand_braces(pattern) if not os.path.exists(pattern) else [pattern]:
                if not glob.has_magic(path) or os.path.exists(path):
                    found.append(path)
                    continue
                matches = sorted(glob.glob(path))
                if not matches:
                    raise GuieError(f"{path}: no file matches; {_there(Path(path).parent)}")
                if self.complete and (problems := gaps(map(os.path.basename, matches))):
                    raise incomplete(path, problems)
                found += matches
        missing = [path for path in found if not os.path.isfile(path)]
        if missing:
            there = _there(Path(missing[0]).parent)
            raise GuieError(f"{len(missing)} of {len(found)} shards are not there: {listing(missing, 5)}; {there}")
        return [Path(path) for path in dict.fromkeys(found)]

    def advice(self, reason: str) -> str:
        if "its json has no" in reason:
            return "Name the field that holds the label: fields=dict(label='NAME')."
        if reason.startswith("no label"):
            return (
                "Name the suffix of the label: label=SUFFIX. An archive of class folders is no WebDataset: unpack it "
                "and name its folder."
            )
        return ""

    def _texts(self, paths: Sequence[Path]) -> dict[str, int]:
        """The label of each text, where labels are texts; {} where they are numbers."""
        texts: set[str] = set()
        samples = numbers = 0
        for path in paths:
            with Shard(path) as shard:
                for sample in _samples(shard, [], self.complete):
                    try:
                        text = str(self._label(self._about(shard, sample).get("label"), shard, sample)).strip()
                    except ValueError:
                        continue
                    samples += 1
                    numbers += _NUMBER.fullmatch(text) is not None
                    texts.add(text)
                    if samples == _LOOKED_AT and 2 * numbers >= samples:
                        return {}
        return {text: number for number, text in enumerate(sorted(texts))} if 2 * numbers < samples else {}

    def _about(self, shard: Shard, sample: _Sample) -> dict[str, Any]:
        """The fields that the sample's JSON has. Raises ValueError in words."""
        if not self.fields or "json" not in sample.parts:
            return {}
        try:
            whole = json.loads(_content(shard, sample, "json"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its json cannot be read: {error}") from None
        about = {}
        for field, place in self.fields.items():
            value = whole
            for part in place.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            about[field] = value
        return about

    def _label(self, value: Any, shard: Shard, sample: _Sample) -> str | int:
        """What the sample says its label is. Raises ValueError in words."""
        if "label" not in self.fields:
            if self.label not in sample.parts:
                raise ValueError(f"no label: it has no {self.label!r}, only {listing(sample.parts, 5)}")
            value = _content(shard, sample, self.label)
        elif value is None:
            raise ValueError(f"no label: its json has no {self.fields['label']!r}{self._keys(shard, sample)}")
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise ValueError(f"its label is {_shown(value)}, not a whole number")
        return value

    def _keys(self, shard: Shard, sample: _Sample) -> str:
        if "json" not in sample.parts:
            return f"; the sample has none, only {listing(sample.parts, 5)}"
        whole = json.loads(_content(shard, sample, "json"))
        return f"; it has {listing(map(repr, whole), 8)}" if isinstance(whole, dict) else "; it is no object"

    def _number(self, value: str | int, places: Mapping[str, int]) -> tuple[int, str]:
        """(label, name). Raises ValueError in words."""
        text = str(value).strip()
        if text in places and (isinstance(value, str) or places is not self._places):
            return places[text], text
        if not _NUMBER.fullmatch(text):
            if self.classes:
                near = did_you_mean(text, self.classes)
                raise ValueError(f"its label is {_shown(text)}, which is not among classes.{near}".rstrip("."))
            raise ValueError(f"its label is {_shown(text)}, not a whole number as others are")
        label = int(text)
        if label < 0:
            raise ValueError(f"its label is {label}; labels count from 0")
        return label, self.classes[label] if label < len(self.classes) else ""


_FIELDS = ("label", "source", "category", "split", "role", "name")
_FIRST = ("jpg", "jpeg", "png", "webp")  # of a sample's jpg and png the jpg is its image
_SUFFIXES = (*_FIRST, *sorted({suffix[1:] for suffix in IMAGE_SUFFIXES} - set(_FIRST)))


def _content(shard: Shard, sample: _Sample, suffix: str) -> str:
    """The text of a component. Raises ValueError in words."""
    member = sample.parts[suffix]
    if member.size > _MAX_TEXT:
        raise ValueError(f"its {suffix} has {member.size:,} bytes, more than a label or what is said of an image")
    try:
        return shard.read(member.offset, member.size).decode()
    except UnicodeDecodeError:
        raise ValueError(f"its {suffix} is no text") from None


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."


def _said(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    if not is_text(text):
        raise ValueError(f"its json holds {text!r}, which is no text")
    return text


def common_name(path: Path) -> str:
    """What the shards of a set are called: "cars" for "cars-{000..009}.tar" and "cars-000.tar"."""
    name = path.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")
    name = re.sub(r"[-_.]*(\{.*|\*.*|\d+(-of-\d+)?)$", "", name)
    return name or path.parent.name or "webdataset"


def expand_braces(pattern: str) -> list[str]:
    """The paths that `{000000..000009}` and `{train,test}` in a pattern stand for, in order.

    Raises UsageError for more than a million.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    span = _RANGE.fullmatch(match[1])
    if span:
        first, last = int(span[1]), int(span[2])
        if abs(last - first) >= 1_000_000:
            raise UsageError(f"{pattern}: {match[0]} stands for more than a million shards")
        width = max(len(span[1]), len(span[2])) if "0" in (span[1][0], span[2][0]) else 0
        step = 1 if first <= last else -1
        choices = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    elif "," in match[1]:
        choices = match[1].split(",")
    else:
        head = pattern[: match.end()]
        return [head + rest for rest in expand_braces(pattern[match.end() :])]
    before, after = pattern[: match.start()], expand_braces(pattern[match.end() :])
    if len(choices) * len(after) > 1_000_000:
        raise UsageError(f"{pattern}: stands for more than a million shards")
    return [f"{before}{choice}{rest}" for choice in choices for rest in after]


def _there(folder: Path) -> str:
    try:
        return f"{folder} holds {listing(map(printable, sorted(os.listdir(folder))), 5)}"
    except OSError as error:
        return f"{folder}: {error.strerror or error}"


# --- samples


class Member(NamedTuple):
    """A regular file in a tar file: its name, and where its bytes are (in the unpacked tar)."""

    name: str
    offset: int
    size: int


class _Sample(NamedTuple):
    key: str
    parts: dict[str, Member]  # by suffix


def _samples(shard: Shard, left_out: list[LeftOut], complete: bool) -> Iterator[_Sample]:
    """Neighbouring members with one key."""
    current: _Sample | None = None
    for member in shard.members(left_out, complete):
        folder, _, file = member.name.rpartition("/")
        base, dot, suffix = file.partition(".")
        if _META.match(member.name) or not base:
            continue  # notes of the library's own, and hidden files such as those that macOS adds
        if not dot:
            left_out.append(LeftOut(f"{shard.path}, {member.name}", "its name has no suffix"))
            continue
        key, suffix = f"{folder}/{base}" if folder else base, suffix.lower()
        if current is None or current.key != key:
            if current is not None:
                yield current
            current = _Sample(key, {})
        if suffix in current.parts:
            reason = f"a second {suffix!r} of sample {key}"
            left_out.append(LeftOut(f"{shard.path}, {member.name}", reason, bad=True))
        else:
            current.parts[suffix] = member
    if current is not None:
        yield current


# --- tar


class Shard:
    """A tar file, packed by gzip or not, whose members are found without unpacking anything to the disk.

    Raises GuieError if it cannot be opened or is packed in another way.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_file(os.fspath(path))  # closed in __exit__
        except OSError as error:
            raise GuieError(f"{path}: cannot be read: {error.strerror or error}") from error
        start = self._file.read(3)
        self._file.seek(0)
        if start in _CANNOT:
            self._file.close()
            raise GuieError(f"{path}: packed by {_CANNOT[start]}, inside which nothing can be found; unpack it to .tar")
        self.size = os.fstat(self._file.fileno()).st_size
        self.compression = "gzip" if start[:2] == b"\x1f\x8b" else ""
        self._packed = PackedFile(path, "gzip") if self.compression else None

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes of the (unpacked) tar file; fewer at the end. Raises DamagedTar."""
        try:
            if self._packed is not None:
                return self._packed.read(offset, size)
            if offset >= self.size:  # maybe more than a file can be long
                return b""
            return os.pread(self._file.fileno(), size, offset)
        except PackedError as error:
            raise DamagedTar(error.problem) from error
        except OSError as error:
            raise DamagedTar(f"it cannot be read: {error.strerror or error}") from error

    def members(self, left_out: list[LeftOut], complete: bool = False) -> Iterator[Member]:
        """The regular files in order. What is left out or damaged goes to `left_out`.

        Raises GuieError if the file is no tar file; with `complete` also, after what is whole, if it is not read to its
        end, since it doesn't say how much that is.
        """
        try:
            header = self.read(0, _BLOCK) if self.size else b""
            if not header:
                raise DamagedTar("it has no bytes")
            if header.strip(b"\0"):
                _parse(header, 0)
        except DamagedTar as error:
            raise GuieError(f"{self.path}: no tar file: {error}. Fetch it again, or name the files you want") from error
        whole = 0
        try:
            for member in self._walk(left_out):
                yield member
                whole += 1
        except DamagedTar as error:
            if complete:
                raise GuieError(
                    f"{self.path}: {error}.\nIts first {plural(whole, 'file')} can be used. How many come after them, "
                    "nobody can tell. Fetch the shard again, or set complete to False to use those that are there"
                ) from error
            left_out.append(LeftOut(str(self.path), f"{error}; what comes after it is lost", bad=True, loud=True))

    def _walk(self, left_out: list[LeftOut]) -> Iterator[Member]:
        position = 0
        everywhere: dict[str, str] = {}  # from global pax headers
        extended: dict[str, str] = {}  # for the next member, from pax headers and GNU's long names
        while True:
            header = self.read(position, _BLOCK)
            if not header or (not header[0] and not header.strip(b"\0")):
                if extended:
                    raise DamagedTar(f"the extended header before byte {position} belongs to no file")
                self._check_end(position)
                return
            kind, name, size = _parse(header, position)
            start = position + _BLOCK
            if kind in _EXTENDED:
                data = self.read(start, min(size, _MAX_HEADER))
                if len(data) < size:
                    raise DamagedTar(
                        f"the extended header at byte {position} has {size:,} bytes, more than there can be"
                    )
                if kind == b"L":
                    extended["path"] = _text(data)
                elif kind != b"K":  # K: where a link leads to
                    (everywhere if kind == b"g" else extended).update(_pax(data, position))
                position = start + _padded(size)
                continue
            about: dict[str, str] = {}
            if everywhere or extended:
                about, extended = everywhere | extended, {}
            name = about.get("path", name)
            size = _decimal(about["size"], position) if "size" in about else size
            if kind == b"S":
                start = self._behind_map(header, start)
            position = start if kind == _DIRECTORY or kind in _WITHOUT_DATA else start + _padded(size)
            if kind in _WITHOUT_DATA:
                left_out.append(LeftOut(f"{self.path}, {name}", f"{_WITHOUT_DATA[kind]}, which is not followed"))
            elif kind == b"S" or any(key.startswith("GNU.sparse.") for key in about):
                reason = "a sparse file, which has no bytes of its own for its holes"
                left_out.append(LeftOut(f"{self.path}, {name}", reason))
            elif kind in _REGULAR:
                if self._is_cut(start, size):
                    raise DamagedTar(f"the file ends inside {name}: it is truncated")
                yield Member(name, start, size)
            elif kind != _DIRECTORY:
                left_out.append(LeftOut(f"{self.path}, {name}", f"of an unknown kind {kind!r}"))

    def _behind_map(self, header: bytes, start: int) -> int:
        """Where the data of an old sparse file start: its map may go on in blocks of their own."""
        more = header[482]
        while more:
            block = self.read(start, _BLOCK)
            more = block[504] if len(block) == _BLOCK else 0
            start += _BLOCK
        return start

    def _is_cut(self, start: int, size: int) -> bool:
        if self._packed is None:
            return start + size > self.size
        return size > 0 and not self.read(start + size - 1, 1)

    def _check_end(self, position: int) -> None:
        """An empty block ends a tar file, and nothing but more of them comes after it. Raises DamagedTar."""
        chunk = self.read(position, 1 << 20)
        if not chunk:
            raise DamagedTar("it has no end mark: it may be truncated")
        while chunk:
            if chunk.strip(b"\0"):
                raise DamagedTar(
                    "there is more after its end mark, perhaps two tar files in one; make two shards of them"
                )
            position += len(chunk)
            chunk = self.read(position, 1 << 20)


class DamagedTar(ValueError):  # noqa: N818  it names the thing
    """What is wrong with a tar file."""


def _parse(header: bytes, position: int) -> tuple[bytes, str, int]:
    """(kind, name, size) of a member."""
    if len(header) < _BLOCK:
        raise DamagedTar(f"the file ends inside the header at byte {position}: it is truncated")
    # the checksum's own field counts as eight spaces
    checksum = sum(header) - sum(header[148:156]) + 256
    if _number(header[148:156], position) != checksum:
        raise DamagedTar(f"the header at byte {position} is damaged")
    kind, name = header[156:157], _text(header[:100])
    if kind == b"\0" and name.endswith("/"):
        kind = _DIRECTORY  # as the oldest tar programs wrote it
    if header[257:263] == b"ustar\0" and header[345] and kind not in _EXTENDED:
        name = f"{_text(header[345:500])}/{name}"
    return kind, name, _number(header[124:136], position)


def _number(field: bytes, position: int) -> int:
    """A number as octal digits, or in base 256 where it is large."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            raise DamagedTar(f"the header at byte {position} has a negative number")
        return value
    digits = field.partition(b"\0")[0].strip()
    if digits.translate(None, b"01234567"):
        raise DamagedTar(f"the header at byte {position} is damaged")
    return int(digits or b"0", 8)


def _decimal(text: str, position: int) -> int:
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise DamagedTar(f"the header before byte {position} has a size {text[:20]!r}")
    return int(text)


def _padded(size: int) -> int:
    """What `size` bytes take in whole blocks."""
    return -(-size // _BLOCK) * _BLOCK


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def _pax(data: bytes, position: int) -> Iterator[tuple[str, str]]:
    """The records `length key=value` of a pax header."""
    while data.strip(b"\0"):
        match = re.match(rb"(\d{1,7}) ", data)
        length = int(match[1]) if match else 0
        key, equals, value = data[match.end() if match else 0 : length].partition(b"=")
        if not match or not equals or length > len(data) or not value.endswith(b"\n"):
            raise DamagedTar(f"the extended header at byte {position} is damaged")
        yield _text(key), _text(value[:-1])
        data = data[length:]
