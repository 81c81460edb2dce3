"""The layouts that manifests are exported to, by name; apart from `exporting`, which takes long to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

Format = Literal["png", "folder", "csv", "tfrecord", "webdataset"]
FORMATS: tuple[Format, ...] = get_args(Format)

#: What each format takes of `export`'s options.
OPTIONS: Mapping[Format, Sequence[str]] = {
    "png": ("method",),
    "folder": ("link",),
    "csv": (),
    "tfrecord": ("per_shard",),
    "webdataset": ("per_shard",),
}
