"""What is wrong with the data, as a table that may be long."""

from __future__ import annotations

import contextlib
import csv
import json
import operator
import os
import re
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from guie_core.files import atomic_write, explain_os_errors
from guie_datasets.places import printable

_IN_MEMORY = 1 << 20  # bytes of findings, some thousands of them; more are kept in a file without a name
_GROUPS = 1000  # reasons that are told apart
_NUMBERS = re.compile(r"\d[\d,]*")
_AT_ONCE = 1 << 16  # bytes that are read back at a time

#: Findings that a group keeps.
GROUP_SHOWS = 3

Kind = Literal["bad", "duplicate", "conflict", "left out"]
_IN_WORDS: dict[Kind, str] = {
    "bad": "bad",
    "duplicate": "repeated",
    "conflict": "kept though equal to an image of another class",
    "left out": "left out",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about the data.

    kind: "bad": cannot be used; kept out. "duplicate": the same bytes with the same label as an earlier row; kept out
    unless asked otherwise. "conflict": the same bytes as an earlier row, but another label; kept. "left out": not meant
    to be an image, by the data set's own rules.
    place: the file, with the part of it where that matters. label: of `prepare` as the data set gives it, in a manifest
    `original_label`; of what is found in a manifest the manifest's. count: of how many images, where one finding stands
    for the rest of a file. name: of the class.
    """

    kind: Kind
    place: str
    reason: str
    source: str = ""
    label: Any = None
    count: int = 1
    name: str = ""


@dataclass(slots=True)
class Group:
    """Findings whose reasons are equal but for numbers: the first of them, and of how many images all are."""

    first: list[Finding]
    count: int = 0

    def __str__(self) -> str:
        return f"{self.count:,} x {self.first[0].reason}, first {self.first[0].place}"


class Groups:
    """Findings by their reasons; of very different ones, only the first thousand reasons are known."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}

    def add(self, finding: Finding) -> None:
        """Adds a finding to those with its reason."""
        key = _NUMBERS.sub("0", finding.reason)
        if key not in self._groups:
            if len(self._groups) >= _GROUPS:
                return
            self._groups[key] = Group([])
        group = self._groups[key]
        group.count += finding.count
        if len(group.first) < GROUP_SHOWS:
            group.first.append(finding)

    def most_frequent(self) -> list[Group]:
        """All of them, those of most images first."""
        return sorted(self._groups.values(), key=lambda group: -group.count)


class Quarantine:
    """What was found wrong, in order of the rows; `images` is the number of images that were examined, good and bad.

    Millions of findings take no memory: they are kept on the disk, in `folder` (default: the temporary one), in a file
    that is open until `close`, or the end of a `with` block, or until this is used no more.

    label: what the column of labels is called in the table, "original_label" for those of the data sets.
    """

    def __init__(
        self,
        findings: Iterable[Finding] = (),
        images: int = 0,
        folder: str | os.PathLike[str] | None = None,
        label: str = "label",
    ) -> None:
        self.images = images
        self.label = label
        #: What people are told at once, in words.
        self.told: list[str] = []
        #: Those that are bad, by their reasons.
        self.bad = Groups()
        self._counts: Counter[Kind] = Counter()
        self._length = 0
        self._folder = Path(folder or tempfile.gettempdir())
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(self._folder))  # noqa: SIM115
        self._close = weakref.finalize(self, let_go, self._file)
        for finding in findings:
            self.add(finding)

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the findings; their counts stay."""
        self._close()

    def add(self, finding: Finding) -> None:
        """Adds a finding at the end."""
        with explain_os_errors(self._folder):
            self._file.seek(0, os.SEEK_END)
            self._file.write(json.dumps(astuple(finding), default=_plain).encode() + b"\n")
        self._counts[finding.kind] += finding.count
        self._length += 1
        if finding.kind == "bad":
            self.bad.add(finding)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of them, in memory."""
        return tuple(self)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Finding]:
        position = 0
        while True:
            self._file.seek(position)
            lines = self._file.readlines(_AT_ONCE)
            position = self._file.tell()
            if not lines:
                return
            for line in lines:
                yield Finding(*json.loads(line))

    def __reduce__(self) -> tuple[Any, ...]:
        return Quarantine, (self.findings, self.images, None, self.label)

    def count(self, kind: Kind) -> int:
        """How many images, or other files, are in findings of this kind."""
        return self._counts[kind]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the findings as a CSV table: kind, place, source, label (as it is called), name, reason, count."""
        with atomic_write(path, "w") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["kind", "place", "source", self.label, "name", "reason", "count"])
            for each in self:
                label = "" if each.label is None else each.label
                values = (each.kind, each.place, each.source, label, each.name, each.reason)
                table.writerow([*(printable(str(value)) for value in values), each.count])

    def __str__(self) -> str:
        """The counts in words, "2 bad, 1 repeated"; "" where nothing was found."""
        return ", ".join(f"{self._counts[kind]:,} {words}" for kind, words in _IN_WORDS.items() if self._counts[kind])


@contextlib.contextmanager
def written(quarantine: Quarantine, path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Writes the table at the end of the block, also of one that fails or is stopped."""
    try:
        yield
    except BaseException:
        if path is not None:
            with contextlib.suppress(Exception):  # the first failure is the one to tell
                quarantine.write(Path(path))
        raise
    if path is not None:
        quarantine.write(path)


def let_go(file: IO[bytes] | tempfile.SpooledTemporaryFile[bytes]) -> None:
    """Closes a temporary file. What a full disk has no room for isn't needed any more, and has been told of."""
    with contextlib.suppress(OSError):
        file.close()


def _plain(value: object) -> Any:
    """A label as JSON can hold it."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return repr(value)
