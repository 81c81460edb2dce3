"""Tests that every data set should pass, to be subclassed with pytest::

    from guie_datasets.testing import DatasetContract

    class TestCars(DatasetContract):
        @pytest.fixture
        def dataset(self, tmp_path):
            make_a_few_images(tmp_path)
            return Cars(tmp_path)
"""

from __future__ import annotations

import itertools
import pickle
from typing import ClassVar

import numpy as np
import pytest

from guie_datasets.extent import counted
from guie_datasets.images.decoding import decode, header_size
from guie_datasets.preparing.preparation import prepare
from guie_datasets.rows import Dataset, ImageRef, Row


class DatasetContract:
    """What `prepare` and the recipes count on. A subclass gives the fixture `dataset`."""

    #: How many images are decoded, spread evenly over the rows.
    sample: ClassVar[int] = 16
    #: How many rows are looked at.
    limit: ClassVar[int] = 20_000

    @pytest.fixture
    def dataset(self) -> Dataset:
        raise NotImplementedError(f"{type(self).__name__} needs a fixture 'dataset' that returns the data set")

    @pytest.fixture
    def rows(self, dataset: Dataset) -> list[Row]:
        return list(itertools.islice(dataset.rows(), self.limit))

    @pytest.fixture
    def some(self, rows: list[Row]) -> list[Row]:
        return rows[:: max(1, len(rows) // self.sample)][: self.sample]

    def test_it_is_a_dataset(self, dataset: Dataset) -> None:
        assert isinstance(dataset, Dataset), f"{type(dataset).__name__} is not a guie_datasets.Dataset"

    def test_it_has_rows(self, rows: list[Row]) -> None:
        assert rows, "rows() gives nothing"
        assert all(isinstance(row, Row) and isinstance(row.image, ImageRef) for row in rows), "rows() must give Row"

    def test_rows_are_the_same_each_time(self, dataset: Dataset, rows: list[Row]) -> None:
        again = list(itertools.islice(dataset.rows(), self.limit))
        assert again == rows, "a second rows() gives other rows, or another order; splits depend on the order"

    def test_labels_are_whole_numbers_from_zero(self, rows: list[Row]) -> None:
        wrong = [row for row in rows if type(row.label) is not int or row.label < 0]
        assert not wrong, f"{len(wrong)} labels are not int >= 0, the first in {wrong[:1]}"

    def test_rows_say_where_they_come_from(self, rows: list[Row]) -> None:
        texts = {(row.source, row.category, row.split, row.role) for row in rows}
        assert all(isinstance(text, str) for row in texts for text in row), "source, category, split, role are texts"
        assert all(source for source, *_ in texts), "source is empty"

    def test_no_image_comes_twice(self, rows: list[Row]) -> None:
        twice = len(rows) - len({(row.image, row.label) for row in rows})
        assert not twice, f"{twice} rows repeat the image and the label of another"

    def test_paths_are_absolute(self, rows: list[Row]) -> None:
        relative = sorted({row.image.path for row in rows if not row.image.path.startswith("/")})
        assert not relative, f"relative paths break when the working directory changes: {relative[:3]}"

    def test_images_decode(self, some: list[Row]) -> None:
        for row in some:
            data = row.image.read()
            image = decode(data)
            assert image.dtype == np.uint8
            assert image.shape == (3, *reversed(header_size(data))), f"{row.image}: size of header and image differ"

    def test_sources_are_files(self, dataset: Dataset, some: list[Row]) -> None:
        sources = list(dataset.sources())
        assert all(path.is_file() for path in sources), "sources() names what is no file"
        missing = {row.image.path for row in some} - {str(path) for path in sources}
        assert not missing, f"sources() lacks {sorted(missing)[:3]}"

    def test_count_is_right_if_given(self, dataset: Dataset) -> None:
        count = dataset.count()
        if count is not None:
            rows = sum(1 for _ in dataset.rows())  # first, since left_out() tells of the last pass over them
            assert count == rows + sum(item.count for item in dataset.left_out() if item.bad)

    def test_as_many_come_as_are_expected(self, dataset: Dataset) -> None:
        extent = dataset.expected()
        if extent is not None and extent.exact:
            assert extent == counted(dataset.rows()), "expected() says that it has counted, and other rows come"

    def test_it_pickles(self, dataset: Dataset, some: list[Row]) -> None:
        again = pickle.loads(pickle.dumps(dataset))
        first = list(itertools.islice(again.rows(), len(some)))
        assert first == list(itertools.islice(dataset.rows(), len(some))), "after pickling the rows differ"

    def test_it_can_be_prepared(self, some: list[Row]) -> None:
        manifest, _ = prepare([_Some(some)], max_bad=0, keep_duplicates=True)
        assert len(manifest) == len(some)


class _Some(Dataset):
    """Some rows of another data set."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def rows(self):  # type: ignore[no-untyped-def]
        return iter(self._rows)
