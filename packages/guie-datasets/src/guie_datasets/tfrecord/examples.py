"""Many serialised `tf.train.Example` at once: what `example.find` gives for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .example import BYTES, INT64, MESSAGE_1, MESSAGE_2

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Places = NDArray[np.int64]
    Words = NDArray[np.uint64]

_TOO_LONG = 1 << 60  # further than any data reach, and so small that some of them can be added


@dataclass(frozen=True, slots=True)
class Found:
    """known: which examples are as writers make them [N]; the others, good or bad, are for `example.find`.

    starts, ends: of the one bytes value. labels: the one int64. All int64 [N]; they say nothing where not known.
    """

    known: NDArray[np.bool_]
    starts: Places
    ends: Places
    labels: Places


def find_all(data: NDArray[np.uint8], starts: Places, ends: Places, image: bytes, label: bytes) -> Found:
    """Where the one bytes value of feature `image` lies, and the one int64 of feature `label`, in the examples that lie
    in `data` at starts..ends, all walked through in step.

    Known are those whose messages are there once each, a feature's name before its value, lengths below 2**28, the
    label packed and in 0..2**49-1, and which end 8 bytes before the data do, or sooner.
    """
    image_starts, image_ends, labels = (np.full(len(starts), -1) for _ in range(3))
    found = Found(ends <= len(data) - 8, image_starts, image_ends, labels)
    known = found.known
    if not known.any():
        return found
    read = _Words(data)
    tag, here, to = read.fields(starts)
    known &= (tag == MESSAGE_1) & (to == ends)
    rows = np.flatnonzero(known & (here < ends))
    while len(rows):
        tag, at, to = read.fields(here[rows])
        name_tag, name_at, name_to = read.fields(at)
        value_tag, value_at, value_to = read.fields(name_to)
        good = (tag == MESSAGE_1) & (name_tag == MESSAGE_1) & (value_tag == MESSAGE_2)
        good &= (to <= ends[rows]) & (value_to == to)
        for name, kind in ((image, BYTES), (label, INT64)):
            some = np.flatnonzero(good & (name_to - name_at == len(name)))
            some = some[read.equal(name_at[some], name)]
            if not len(some):
                continue
            kinds, list_at, list_to = read.fields(value_at[some])
            item_tags, item_at, item_to = read.fields(list_at)
            fits = (kinds == kind) & (item_tags == MESSAGE_1) & (list_to == to[some]) & (item_to == list_to)
            if kind == BYTES:
                image_starts[rows[some]], image_ends[rows[some]] = item_at, item_to
            else:
                numbers, number_ends = read.numbers(item_at)
                fits &= (number_ends == item_to) & (numbers < _TOO_LONG)
                labels[rows[some]] = numbers
            good[some] = fits
        known[rows] = good
        here[rows] = to
        rows = rows[good & (to < ends[rows])]
    known &= (image_starts >= 0) & (labels >= 0)
    return found


class _Words:
    """What stands in protocol buffers' wire format at many places of `data`, each of them up to 8 bytes before its end;
    from places beyond comes anything."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        # the eight bytes from each byte on; not a copy
        self._words: Words = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))

    def fields(self, at: Places) -> tuple[Words, Places, Places]:
        """Of fields with a tag of one byte and a length: (tag, start of what has that length, its end).

        The end is `_TOO_LONG` or more where the length takes more than four bytes.
        """
        words = self._read(at)
        lengths, widths = _unpacked(words >> np.uint64(8), 0x80808080)
        starts = at + 1 + widths
        return words & np.uint64(0xFF), starts, starts + lengths

    def numbers(self, at: Places) -> tuple[Places, Places]:
        """(the number, where it ends). A number that takes more than seven bytes is `_TOO_LONG` or more."""
        values, widths = _unpacked(self._read(at), 0x80808080808080)
        return values, at + widths

    def equal(self, at: Places, text: bytes) -> NDArray[np.bool_]:
        """Where `text` stands."""
        same = np.ones(len(at), np.bool_)
        for first in range(0, len(text), 8):
            part = text[first : first + 8]
            same &= self._read(at + first) & ((1 << 8 * len(part)) - 1) == int.from_bytes(part, "little")
        return same

    def _read(self, at: Places) -> Words:
        return self._words[np.minimum(at, len(self._words) - 1)]


def _unpacked(words: Words, stops: int) -> tuple[Places, NDArray[np.uint8]]:
    """(number, how many bytes it takes) of the varints at the start of words. stops: the bits of which the first that
    is not set ends a number; without one it is `_TOO_LONG` or more."""
    there = ~words & stops
    there ^= there - 1  # ones up to the first; ones only if there is none
    bits = words & there & 0x7F7F7F7F7F7F7F7F  # seven of each byte; they are moved together in three steps
    bits -= (bits & 0x7F007F007F007F00) >> 1
    bits = bits & 0x00003FFF00003FFF | (bits & 0x3FFF00003FFF0000) >> 2
    if stops >> 32:
        bits = bits & 0x000000000FFFFFFF | (bits & 0x0FFFFFFF00000000) >> 4
    return (bits | there & _TOO_LONG).astype(np.int64), np.bitwise_count(there) >> 3
