"""Figures of a manifest, against pandas' on the same rows; plots and the page that they stand on."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from guie_core import UsageError
from guie_datasets import ClassFolders, Manifest, prepare
from guie_datasets.commands.stats import stats
from guie_datasets.inspecting.charts import curve, histogram
from guie_datasets.inspecting.statistics import charts, facts, statistics, write_statistics

HOSTILE = "<script>alert(1)</script> & 红苹果"


def made(rows: int, seed: int = 0) -> Manifest:
    rng = np.random.default_rng(seed)
    label = np.minimum(rng.geometric(0.05, rows) - 1, 60)
    contents = rng.integers(0, max(rows * 9 // 10, 1), rows)
    return Manifest.from_columns(
        {
            "path": [f"/nowhere/{number}.jpg" for number in range(rows)],
            "length": np.where(np.arange(rows) % 2, 100, -1),
            "label": label,
            "source": np.array(["a", "b", HOSTILE])[label % 3].tolist(),
            "category": ["" if each % 4 else "food" for each in label.tolist()],
            "width": rng.integers(1, 3000, rows),
            "height": rng.integers(1, 3000, rows),
            "hash": [f"{each:032x}" for each in contents.tolist()],
        },
        {"findings": "2 bad, 1 repeated", "made_by": "guie-datasets 0"},
    )


@pytest.mark.parametrize("rows", [1, 2, 700])
def test_figures_are_those_of_pandas(rows: int) -> None:
    manifest = made(rows)
    found, frame = statistics(manifest), manifest.to_pandas()
    counts = frame.label.value_counts()
    assert (found.images, found.classes) == (rows, len(counts))
    assert found.per_class is not None
    assert found.per_class.smallest == counts.min()
    assert found.per_class.largest == counts.max()
    assert found.per_class.median == counts.median()
    assert found.per_class.mean == pytest.approx(counts.mean())
    few = (found.per_class.single, found.per_class.below_5, found.per_class.below_20)
    assert few == ((counts == 1).sum(), (counts < 5).sum(), (counts < 20).sum())
    assert found.counts.tolist() == sorted(counts.tolist(), reverse=True)
    for name in ("width", "height"):
        assert found.quantiles[name]["25 %"] == pytest.approx(frame[name].quantile(0.25))
        assert found.quantiles[name]["largest"] == frame[name].max()
    assert found.quantiles["aspect"]["median"] == pytest.approx((frame.width / frame.height).median(), abs=1e-4)
    assert found.shapes is not None
    assert found.shapes.portrait == pytest.approx((frame.height > frame.width).mean())
    wide = (frame[["width", "height"]].max(axis=1) / frame[["width", "height"]].min(axis=1)) > 2
    assert found.shapes.beyond_1_to_2 == pytest.approx(wide.mean())
    assert found.duplicates == frame.hash.duplicated().sum()
    other = frame.label != frame.groupby("hash").label.transform("first")
    assert found.conflicts == other.sum()
    by = frame.groupby("source", observed=True).label
    assert {part.name: (part.images, part.classes) for part in found.parts["source"]} == {
        name: (len(group), group.nunique()) for name, group in by
    }
    assert "split" not in found.parts
    assert sum(found.sizes["side"]) == sum(found.sizes["aspect"]) == rows


def test_seeds_that_are_none() -> None:
    with pytest.raises(UsageError, match="seed is -1; it is a whole number from 0"):
        statistics(made(3), seed=-1)


def test_nothing_at_all() -> None:
    empty = made(3).select(np.zeros(3, bool))
    found = statistics(empty)
    assert (found.images, found.classes, found.per_class, found.duplicates) == (0, 0, None, 0)
    assert dict(facts(found))["images"] == "0"
    assert charts(found) == []


def test_formats_and_bytes_are_read_from_the_files(tmp_path: Path) -> None:
    for number, kind in enumerate(["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"]):
        (tmp_path / "own" / "x").mkdir(parents=True, exist_ok=True)
        suffix = {"JPEG": "jpg", "JPEG2000": "jp2"}.get(kind, kind.lower())
        Image.new("RGB", (20, 10), (number, 9, 9)).save(tmp_path / "own" / "x" / f"{number}.{suffix}", kind)
    manifest, _ = prepare([ClassFolders(tmp_path / "own")])
    files = [Path(ref.path) for ref in manifest.images()]
    found = statistics(manifest).storage
    assert found is not None
    assert (found.bytes, found.exact, found.missing) == (sum(file.stat().st_size for file in files), True, 0)
    expected = {"JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG 2000"}
    assert set(found.formats) == expected & {*found.formats} | {"JPEG", "PNG"}
    assert set(found.formats) <= expected
    assert len(found.formats) == len(files)
    files[0].unlink()
    gone = statistics(manifest).storage
    assert gone is not None
    assert gone.missing == 1
    assert dict(facts(statistics(manifest)))["not there now"].startswith(f"1 of {len(files)} images looked at; ")


def test_bytes_of_many_files_are_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").mkdir()
    paths = [tmp_path / "x" / f"{number}" for number in range(50)]
    for path in paths:
        path.write_bytes(b"\xff\xd8\xff" + bytes(97))
    columns = {"path": [str(path) for path in paths], "label": np.zeros(50, int), "width": np.ones(50, int)}
    manifest = Manifest.from_columns({**columns, "height": np.ones(50, int), "hash": ["0" * 32] * 50})
    monkeypatch.setattr("guie_datasets.inspecting.statistics.SAMPLE", 10)
    found = statistics(manifest)
    assert found.storage is not None
    assert (found.storage.bytes, found.storage.exact, found.storage.looked_at) == (5000, False, 10)
    assert dict(facts(found))["on disk"] == "about 5.0 kB"


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)


def test_the_page_holds_all_and_escapes_what_it_holds(tmp_path: Path) -> None:
    found = statistics(made(700))
    write_statistics(tmp_path / "page.html", found, name=HOSTILE, command="guie data stats x")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    tags = Tags(text).found
    assert "script" not in tags
    assert tags.count("svg") == 5
    assert "红苹果" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    for _, value in facts(found):
        assert value.replace("<", "&lt;") in text
    assert "2 bad, 1 repeated" in text


def test_bars_are_as_high_as_their_counts() -> None:
    chart = histogram("t", [0, 10, 5], ["a", "<b>", "c", "d"], "axis", "words")
    root = ElementTree.fromstring(chart.svg)
    heights = [float(bar.attrib["height"]) for bar in root.iter("rect")]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)
    assert [text.text for text in root.iter("text")] == ["0", "5", "10", "a", "<b>", "c", "d", "axis"]


@pytest.mark.parametrize("values", [[100.0, 10.0, 1.0], [5.0], [1.0, 1.0]])
def test_a_curve_is_logarithmic(values: list[float]) -> None:
    root = ElementTree.fromstring(curve("t", values, len(values), "axis", "words").svg)
    points = [tuple(map(float, point.split(","))) for point in root.find("polyline").attrib["points"].split()]  # type: ignore[union-attr]
    if len(values) == 3:
        assert points[1][1] - points[0][1] == pytest.approx(points[2][1] - points[1][1], abs=0.2)
        assert points[1][1] > points[0][1]
    assert all(0 <= x <= 360 and 0 <= y <= 216 for x, y in points)


def test_the_command(tmp_path: Path) -> None:
    made(700).write(tmp_path / "红.parquet")
    runner = CliRunner()
    said = runner.invoke(stats, [str(tmp_path / "红.parquet"), "-o", str(tmp_path / "page.html")])
    assert said.exit_code == 0, said.output
    assert "images            700" in said.output
    assert "by source" in said.output
    assert (tmp_path / "page.html").is_file()
    made(1).write(tmp_path / "one.parquet")
    assert runner.invoke(stats, [str(tmp_path / "one.parquet")]).output.rstrip().endswith(" 1 image  1 class")
    as_json = runner.invoke(stats, [str(tmp_path / "红.parquet"), "--format", "json"])
    figures = json.loads(as_json.stdout)
    assert figures["images"] == 700
    assert figures["parts"]["category"][0].keys() == {"name", "images", "classes"}
