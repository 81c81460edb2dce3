"""What two manifests or splits have in common: in words, as a table, on a page, by exit code."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from sklearn.datasets import load_sample_images

from guie_core import GuieError, UsageError
from guie_datasets import ClassFolders, Manifest, prepare
from guie_datasets.commands.leaks import leaks
from guie_datasets.inspecting.leaks import compare_splits
from guie_datasets.inspecting.similarity import fingerprints, kept_beside


def photo(number: int) -> Image.Image:
    top, left = divmod(number, 5)
    return Image.fromarray(load_sample_images().images[0][110 * top : 110 * top + 200, 105 * left : 105 * left + 200])


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """cat: 0..3 in train; 0 again, 1 as a worse JPEG under dog, 4 and 5 in test."""
    rows = [("猫", photo(each), f"{each}.png", {}) for each in range(4)]
    rows += [("狗", photo(4), "4.png", {}), ("狗", photo(5), "5.png", {}), ("狗", photo(1), "1.jpg", {"quality": 40})]
    rows += [("狗", photo(0), "0 again.png", {})]
    for folder, image, name, options in rows:
        (tmp_path / "own" / folder).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "own" / folder / name, **options)  # type: ignore[arg-type]
    made, _ = prepare([ClassFolders(tmp_path / "own")])
    made = made.with_column("split", ["train" if name == "猫" else "test" for name in made.column("name")])
    made.write(tmp_path / "all.parquet")
    return tmp_path / "all.parquet"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(leaks, [str(each) for each in arguments])


def test_between_splits(manifest: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(leaks, [str(manifest), "-o", str(tmp_path / "leaks.html")])
    assert said.exit_code == 1
    assert "are in train as well: 1 the same bytes, 1 nearly the same; 2 of them with another label." in said.output
    assert kept_beside(manifest).is_file()
    with open(tmp_path / "leaks.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["kind"], Path(row["place"]).name) for row in rows} == {
        ("exact", "0.png"),
        ("exact", "0 again.png"),
        ("near", "1.png"),
        ("near", "1.jpg"),
    }
    assert {row["group"] for row in rows} == {"0", "1"}
    assert {row["name"] for row in rows} == {"猫", "狗"}
    page = (tmp_path / "leaks.html").read_text(encoding="utf-8")
    assert page.count("<img") == 4
    assert "猫" in page
    assert page.count("other labels") == 2
    assert page.index("nearly the same (") < page.index("<h3>the same bytes")


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["test", "train"], [("train", "test")]),
        (["query", "index", "train"], [("train", "index"), ("train", "query"), ("index", "query")]),
        (["test", "mine", "select", "valid"], None),
        (["b", "a"], [("b", "a")]),  # what guie knows nothing of stays in order of appearance
    ],
)
def test_what_is_used_later_is_measured(manifest: Path, names: list[str], pairs: list[tuple[str, str]] | None) -> None:
    """The share of the test images that were seen in training is what spoils a score, not the other way round."""
    whole = Manifest.read(manifest)
    prints = fingerprints(whole.with_column("split", [names[row % len(names)] for row in range(len(whole))]))
    order = ["valid", "select", "mine", "test"]
    expected = pairs or [(a, b) for place, a in enumerate(order) for b in order[place + 1 :]]
    assert [(each.a, each.b) for each in compare_splits(prints)] == expected


def test_the_share_of_the_test_split_is_told(manifest: Path) -> None:
    assert Manifest.read(manifest).column("split")[0] == "test"
    assert "2 images of test (50.0 %) are in train as well: 1 the same bytes" in run(manifest).output


def test_exit_codes(manifest: Path) -> None:
    said = run(manifest, "--split-a", "train", "--split-b", "test")
    assert "2 images of test (50.0 %) are in train as well" in said.output
    assert said.exit_code == 1
    whole = Manifest.read(manifest)
    names = np.array([Path(ref.path).name for ref in whole.images()])
    for name, files in (("a", ["2.png", "3.png"]), ("b", ["4.png", "5.png"])):
        whole.select(np.isin(names, files)).write(manifest.with_name(f"{name}.parquet"))
    said = run(manifest.with_name("a.parquet"), manifest.with_name("b.parquet"))
    assert said.exit_code == 0
    assert "no image of " in said.output
    assert "(2 and 2 images)" in said.output


def test_what_is_asked_wrongly(manifest: Path, tmp_path: Path) -> None:
    whole = Manifest.read(manifest)
    whole.with_column("split", [""] * len(whole)).write(tmp_path / "none.parquet")
    whole.with_column("split", ["train"] * len(whole)).write(tmp_path / "one.parquet")
    for arguments, words in (
        ([tmp_path / "none.parquet"], "the manifest has no splits. Experiments make them: the manifest with splits"),
        ([tmp_path / "none.parquet"], "Or name a second manifest to compare it with"),
        ([tmp_path / "none.parquet", "--split-a", "a", "--split-b", "b"], "the manifest has no splits. Experiments"),
        ([tmp_path / "one.parquet"], "the manifest has one split alone, 'train'"),
        ([manifest, "--split-a", "train"], "--split-a and --split-b belong together"),
        ([manifest, "--split-a", "train", "--split-b", "tset"], "no split 'tset'. Did you mean 'test'"),
        ([manifest, "-o", "x.pdf"], "it must end in .html or .csv"),
    ):
        error = run(*arguments).exception
        assert isinstance(error, UsageError)
        assert words in str(error)
    assert not kept_beside(tmp_path / "none.parquet").exists()


def test_empty_manifests_and_single_images(manifest: Path, tmp_path: Path) -> None:
    whole = Manifest.read(manifest)
    whole.select(np.zeros(len(whole), bool)).write(tmp_path / "empty.parquet")
    whole.select([0]).write(tmp_path / "single.parquet")
    assert run(tmp_path / "empty.parquet", manifest).exit_code == 0
    assert run(tmp_path / "empty.parquet", tmp_path / "empty.parquet", "-o", tmp_path / "x.html").exit_code == 0
    said = run(tmp_path / "single.parquet", tmp_path / "single.parquet")
    assert "1 image of" in said.output
    assert said.exit_code == 1


def test_labels_of_two_manifests_are_not_compared(manifest: Path, tmp_path: Path) -> None:
    whole = Manifest.read(manifest)
    for split in ("train", "test"):
        whole.select(whole.column("split") == split).write(tmp_path / f"{split}.parquet")
    said = run(tmp_path / "train.parquet", tmp_path / "test.parquet")
    assert "1 the same bytes, 1 nearly the same" in said.output
    assert "another label" not in said.output


def test_images_that_are_gone(manifest: Path) -> None:
    gone = next(ref.path for ref in Manifest.read(manifest).images() if ref.path.endswith("1.jpg"))
    Path(gone).unlink()
    error = run(manifest).exception
    assert isinstance(error, GuieError)
    assert "1 of 8 images cannot be read (12.50%, more than --max-bad 0.001 allows)" in str(error)
    said = run(manifest, "--max-bad", "0.2")
    assert "1 the same bytes" in said.output
    assert "nearly" not in said.output
    assert f"1 image could not be read and was compared by bytes alone: {gone}: cannot be read" in said.output


def test_a_file_that_becomes_damaged_after_it_was_hashed(manifest: Path) -> None:
    assert "1 nearly the same" in run(manifest).output
    damaged = next(ref.path for ref in Manifest.read(manifest).images() if ref.path.endswith("1.jpg"))
    Path(damaged).write_bytes(b"none")
    said = run(manifest)
    assert isinstance(said.exception, SystemExit)  # the exact one
    assert "nearly" not in said.output
