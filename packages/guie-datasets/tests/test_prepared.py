"""A manifest as a data set of another one."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from guie_core import GuieError, build
from guie_datasets import ClassFolders, HoldOutClasses, Manifest, TFRecordDataset, prepare, split, tfrecord
from guie_datasets.sets.prepared import Prepared
from guie_datasets.testing import DatasetContract


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for number in range(12):
        image = tmp_path / "images" / f"class-{number % 4}" / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + number, 6), (number, 20, 30)).save(image)
    images = [tmp_path / "images" / f"class-{number % 4}" / f"{number}.png" for number in range(5)]
    tfrecord.write(tmp_path / "a.tfrec", [(image.read_bytes() + b"\0", i % 2) for i, image in enumerate(images)])
    shards = TFRecordDataset(files=[tmp_path / "a.tfrec"], source="shards", category="packed")
    manifest, _ = prepare([ClassFolders(tmp_path / "images", category="things"), shards])
    manifest = split(manifest, [HoldOutClasses(classes=2)])
    roles = ["query" if number % 2 else "index" for number in range(len(manifest))]
    manifest.with_column("role", roles).write(tmp_path / "before.parquet")
    return tmp_path / "before.parquet"


class TestContract(DatasetContract):
    @pytest.fixture
    def dataset(self, path: Path) -> Prepared:
        return Prepared(path)


def test_rows_are_those_of_the_manifest(path: Path) -> None:
    before = Manifest.read(path)
    dataset = build("datasets", {"type": "manifest", "path": str(path)})
    after, quarantine = prepare([dataset])
    assert not quarantine
    for name in before.table.column_names:
        assert after.column(name).tolist() == before.column(name).tolist(), name
    assert after.digest == before.digest
    assert set(after.column("split")) == {"train", "test"}
    assert dataset.count() == len(before) == 17
    assert before.column("original_label").tolist()[-5:] == [0, 1, 0, 1, 0]
    assert before.column("label").tolist()[-5:] == [4, 5, 4, 5, 4]
    about = after.provenance["datasets"][0]
    assert about["digest"] == before.digest
    assert [each["type"] for each in about["manifest"]["datasets"]] == [
        "guie_datasets.sets.folders:ClassFolders",
        "guie_datasets.sets.tfrecords:TFRecordDataset",
    ]


def test_sources_are_the_manifest_and_its_files_once(path: Path) -> None:
    sources = list(Prepared(path).sources())
    assert sources[0] == path
    assert len(sources) == 1 + 12 + 1
    assert path.parent / "a.tfrec" in sources


def test_images_that_went_away_are_bad(path: Path) -> None:
    gone = path.parent / "images" / "class-0" / "0.png"
    gone.unlink()
    manifest, quarantine = prepare([Prepared(path)], max_bad=0.1)
    assert len(manifest) == 16
    assert [finding.place for finding in quarantine] == [str(gone)]


def test_what_is_no_manifest(path: Path) -> None:
    with pytest.raises(GuieError, match="no manifest"):
        list(Prepared(path.parent / "a.tfrec").rows())
    with pytest.raises(GuieError, match=r"nothing\.parquet"):
        list(Prepared(path.parent / "nothing.parquet").rows())
