"""A manifest that was prepared before, as a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from guie_datasets.extent import Extent
from guie_datasets.manifest import Manifest
from guie_datasets.places import absolute
from guie_datasets.rows import Dataset, Row


class Prepared(Dataset):
    """The rows of a manifest: images, labels (the original ones too), sources, categories, splits, roles and names as
    the file has them.

    path: the manifest, as `guie data prepare` and `Manifest.write` make it.

    `rows()` raises GuieError if it is no manifest. An image that is no longer there is found bad by `prepare`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = absolute(path)

    def rows(self) -> Iterator[Row]:
        manifest = Manifest.read(self.path)
        names = ("source", "category", "split", "role", "name")
        columns = [manifest.column(name) for name in ("label", *names)]
        original = manifest.column("original_label" if "original_label" in manifest.column_names else "label")
        for number, image in enumerate(manifest.images()):
            label, source, category, split, role, name = (column[number] for column in columns)
            yield Row(image, int(label), source, category, split, role, name, int(original[number]))

    def count(self) -> int:
        return len(Manifest.read(self.path))

    def expected(self) -> Extent:
        manifest = Manifest.read(self.path)
        categories = tuple(sorted(set(manifest.column("category").tolist())))
        return Extent(len(manifest), len(set(manifest.column("label").tolist())), categories, exact=True)

    def sources(self) -> Iterator[Path]:
        yield self.path
        paths = Manifest.read(self.path).table.column("path").unique()
        yield from (Path(text.as_py()) for text in paths if os.path.isfile(text.as_py()))

    def tables(self) -> Sequence[Path]:
        return [self.path]

    def provenance(self) -> Mapping[str, Any]:
        """With the manifest's digest and what it says of its own data sets."""
        manifest = Manifest.read(self.path)
        return {**super().provenance(), "digest": manifest.digest, "manifest": dict(manifest.provenance)}
