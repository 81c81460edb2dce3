"""Tar shards of samples, written and read back by the `webdataset` library, by tarfile and by tar itself."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from guie_core import GuieError, UsageError, build
from guie_datasets import Dataset, prepare
from guie_datasets.sets.tables import Table
from guie_datasets.sets.webdataset import Shard, WebDataset, expand_braces
from guie_datasets.testing import DatasetContract


def image(number: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9 + number % 5, 7), (number % 256, number // 256, 50)).save(buffer, kind)
    return buffer.getvalue()


def library_writes(pattern: Path, samples: int, per_shard: int, **options: Any) -> None:
    with webdataset.ShardWriter(str(pattern), maxcount=per_shard, verbose=0, **options) as writer:
        for number in range(samples):
            about = {"class_id": number % 7, "about": {"kind": f"kind {number % 2}"}, "tags": ["a", 1]}
            writer.write(
                {
                    "__key__": f"{'part/' if number % 2 else ''}{number:06d}",
                    "jpg" if number % 3 else "PNG".lower(): image(number, "JPEG" if number % 3 else "PNG"),
                    "cls": number % 5,
                    "json": about,
                    "caption.txt": "a thing",
                }
            )


def library_reads(files: list[str]) -> Iterator[dict[str, Any]]:
    yield from webdataset.WebDataset(files, shardshuffle=False, empty_check=False)


def tar(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT, mode: str = "w") -> Path:
    with tarfile.open(path, mode, format=format) as file:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def left_out(dataset: Dataset) -> list[tuple[str, str, bool]]:
    return [(item.place.rpartition(", ")[2], item.reason, item.bad) for item in dataset.left_out()]


class TestContract(DatasetContract):
    @pytest.fixture
    def dataset(self, tmp_path: Path) -> WebDataset:
        library_writes(tmp_path / "cars-%06d.tar", 24, 10)
        return WebDataset(str(tmp_path / "cars-{000000..000002}.tar"))


class TestPackedContract(DatasetContract):
    @pytest.fixture
    def dataset(self, tmp_path: Path) -> WebDataset:
        library_writes(tmp_path / "cars-%06d.tar.gz", 24, 10)
        return WebDataset(str(tmp_path / "cars-*.tar.gz"), fields={"label": "class_id"})


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_the_same_samples_as_the_library(tmp_path: Path, suffix: str) -> None:
    library_writes(tmp_path / f"cars-%06d.{suffix}", 50, 20)
    files = sorted(map(str, tmp_path.glob("cars-*")))
    assert len(files) == 3
    dataset = WebDataset(str(tmp_path / f"cars-{{000000..000002}}.{suffix}"))
    rows, theirs = list(dataset.rows()), list(library_reads(files))
    assert len(rows) == len(theirs) == 50
    assert [row.image.read() for row in rows] == [each.get("jpg") or each["png"] for each in theirs]
    assert [row.label for row in rows] == [int(each["cls"]) for each in theirs]
    assert [row.image.path for row in rows] == [each["__url__"] for each in theirs]
    assert {row.source for row in rows} == {"cars"}
    assert [str(path) for path in dataset.sources()] == files
    assert not dataset.left_out()
    fields = {"label": "class_id", "category": "about.kind", "name": "tags"}
    rows = list(WebDataset(files, fields=fields, source="x").rows())
    theirs_json = [json.loads(each["json"]) for each in theirs]
    assert [(row.label, row.category, row.name) for row in rows] == [
        (each["class_id"], each["about"]["kind"], '["a", 1]') for each in theirs_json
    ]


KEYS = st.text("abAB012._-/é文", min_size=1, max_size=12).filter(lambda name: not name.startswith("/"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.tuples(KEYS, st.sampled_from(["jpg", "cls", "JPG", "seg.png", "png", ""])), max_size=12))
def test_samples_are_grouped_as_by_the_library(tmp_path: Path, names: list[tuple[str, str]]) -> None:
    members = [(f"{name}.{suffix}" if suffix else name, f"{n}".encode()) for n, (name, suffix) in enumerate(names)]
    path = tar(tmp_path / "x.tar", members, tarfile.PAX_FORMAT)
    dataset = WebDataset(str(path))
    mine = [(row.image.read(), row.label) for row in dataset.rows()]
    if any("second" in item.reason for item in dataset.left_out()):
        return  # where the library raises
    hidden = [name for name, _ in members if name.rpartition("/")[2].startswith(".")]
    if hidden:
        return  # the library takes "a/.jpg" for the sample "a/", and ends a sample at any hidden file
    theirs = [each for each in library_reads([str(path)]) if "cls" in each and ("jpg" in each or "png" in each)]
    assert mine == [(each["jpg"] if "jpg" in each else each["png"], int(each["cls"])) for each in theirs]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_other_letters(tmp_path: Path, format: int) -> None:
    long = "a-long-folder/" * 9 + "x" * 80
    members = [(f"{long}.jpg", image(1)), (f"{long}.cls", b"3")]
    if format != tarfile.USTAR_FORMAT:
        members += [(f"{'文' * 90}.jpg", image(2)), (f"{'文' * 90}.cls", b"4")]
    path = tar(tmp_path / "x.tar", members, format)
    rows = list(WebDataset(str(path)).rows())
    assert [(row.label, row.image.read()) for row in rows] == [(3, image(1)), (4, image(2))][: len(rows)]
    assert len(rows) == len(members) // 2
    with tarfile.open(path) as file, Shard(path) as shard:
        wanted = [(member.name, member.offset_data, member.size) for member in file]
        assert [tuple(member) for member in shard.members([])] == wanted


@pytest.mark.parametrize("format", ["v7", "ustar", "oldgnu", "gnu", "posix"])
def test_what_tar_itself_writes(tmp_path: Path, format: str) -> None:
    folder = tmp_path / "set"
    (folder / "b").mkdir(parents=True)
    for name, data in (("a.jpg", image(1)), ("a.cls", b"1"), ("b/c.png", image(2, "PNG")), ("b/c.cls", b"2\n")):
        (folder / name).write_bytes(data)
    (folder / "hole.jpg").touch()
    with open(folder / "sparse.jpg", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    (folder / "link.jpg").symlink_to("a.jpg")
    names = ["a.jpg", "a.cls", "link.jpg", "b/c.png", "b/c.cls", "sparse.jpg", "hole.jpg"]
    command = [
        "tar",
        f"--format={format}",
        "-C",
        str(folder),
        "-cf",
        str(tmp_path / "x.tar"),
        "--no-recursion",
        "b",
        *names,
    ]
    if format in ("gnu", "oldgnu", "posix"):
        command.insert(1, "--sparse")
    subprocess.run(command, check=True)
    dataset = WebDataset(str(tmp_path / "x.tar"))
    rows = [(row.label, row.image.read()) for row in dataset.rows()]
    assert rows == [(1, image(1)), (2, image(2, "PNG"))]
    reasons = {(place, reason.partition(",")[0]) for place, reason, _ in left_out(dataset)}
    assert ("link.jpg", "a link") in reasons
    if "--sparse" in command:
        assert any(reason == "a sparse file" for _, reason in reasons)


def test_what_is_wrong_in_samples(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "x.tar",
        [
            ("good.jpg", image(1)),
            ("good.cls", b" 5\n"),
            ("nolabel.jpg", image(2)),
            ("noimage.cls", b"5"),
            ("text.jpg", image(3)),
            ("text.cls", b"cat"),
            ("negative.jpg", image(4)),
            ("negative.cls", b"-1"),
            ("bytes.jpg", image(5)),
            ("bytes.cls", b"\xff\xfe"),
            ("twice.jpg", image(6)),
            ("twice.jpg", image(7)),
            ("twice.cls", b"6"),
            ("README", b"x"),
            ("__meta__/x.jpg", image(8)),
            ("._good.jpg", b"of macOS"),
            ("fraction.jpg", image(9)),
            ("fraction.cls", b"1.5"),
        ],
    )
    dataset = WebDataset(str(path))
    assert [(row.label, row.image.read()) for row in dataset.rows()] == [(5, image(1)), (6, image(6))]
    assert left_out(dataset) == [
        ("sample nolabel", "no label: it has no 'cls', only jpg", True),
        ("sample noimage", "a sample without an image; it has cls", False),
        ("sample text", "its label is 'cat', not a whole number as others are", True),
        ("sample negative", "its label is -1; labels count from 0", True),
        ("sample bytes", "its cls is no text", True),
        ("twice.jpg", "a second 'jpg' of sample twice", True),
        ("README", "its name has no suffix", False),
        ("sample fraction", "its label is '1.5', not a whole number as others are", True),
    ]
    named = WebDataset(str(path), classes=["dog", "cat"])
    assert [(row.label, row.name) for row in named.rows()] == [(5, ""), (1, "cat"), (6, "")]


def test_json_that_does_not_fit(tmp_path: Path) -> None:
    texts = ['{"id": 3}', '{"id": "x"}', '{"id": true}', "[1]", "{", '{"id": "\\ud800"}', '{"name": 1}', '{"id": "12"}']
    members = [part for n, text in enumerate(texts) for part in ((f"{n}.jpg", image(n)), (f"{n}.json", text.encode()))]
    dataset = WebDataset(str(tar(tmp_path / "x.tar", members)), fields={"label": "id"})
    assert [row.label for row in dataset.rows()] == [3, 12]
    assert [place for place, _, bad in left_out(dataset) if bad] == [f"sample {n}" for n in range(1, 7)]
    surrogate = WebDataset(str(tmp_path / "x.tar"), label="json", fields={"label": "id", "name": "id"})
    assert len(list(surrogate.rows())) == 2


@pytest.mark.parametrize("packed", [False, True])
def test_a_truncated_shard_gives_what_is_whole_when_asked_for(tmp_path: Path, packed: bool) -> None:
    members = [part for n in range(6) for part in ((f"{n}.jpg", image(n) + bytes(900)), (f"{n}.cls", b"%d" % n))]
    path = tar(tmp_path / "x.tar", members)
    whole = path.read_bytes()
    for cut in (512 * 9 + 100, 512 * 9 + 512 + 30, 512 * 9 + 700):
        data = whole[:cut]
        path.write_bytes(gzip.compress(data) if packed else data)
        dataset = WebDataset(str(path), complete=False)
        rows = list(dataset.rows())
        assert 1 <= len(rows) < 6
        assert [row.image.read() for row in rows] == [data for name, data in members if ".jpg" in name][: len(rows)]
        assert any(item.bad and "is truncated" in item.reason for item in dataset.left_out())
    if packed:
        path.write_bytes(gzip.compress(whole)[:-40])
        dataset = WebDataset(str(path), complete=False)
        assert len(list(dataset.rows())) <= 6
        assert any(item.bad and "truncated" in item.reason for item in dataset.left_out())
    else:
        path.write_bytes(whole)
        with tarfile.open(path) as file:
            second, header = (file.getmembers()[number].offset for number in (2, 5))
        damaged = bytearray(whole)
        damaged[header + 3] ^= 1  # in its name, so that the header's checksum is wrong
        path.write_bytes(damaged)
        dataset = WebDataset(str(path), complete=False)
        assert len(list(dataset.rows())) == 2
        assert any("is damaged; what comes after it is lost" in item.reason for item in dataset.left_out())
        path.write_bytes(whole + whole)
        dataset = WebDataset(str(path), complete=False)
        assert len(list(dataset.rows())) == 6
        assert "two tar files in one" in dataset.left_out()[-1].reason
        path.write_bytes(whole[:second])
        dataset = WebDataset(str(path), complete=False)
        assert len(list(dataset.rows())) == 1
        assert "it has no end mark" in dataset.left_out()[-1].reason


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("spoil", ["cut", "header", "twice", "end"])
def test_a_shard_that_is_not_read_to_its_end_is_an_error(tmp_path: Path, packed: bool, spoil: str) -> None:
    members = [part for n in range(6) for part in ((f"{n}.jpg", image(n) + bytes(900)), (f"{n}.cls", b"%d" % n))]
    path = tar(tmp_path / "x.tar", members)
    whole = path.read_bytes()
    with tarfile.open(path) as file:
        third = file.getmembers()[6].offset
    damaged = {
        "cut": whole[: third + 700],
        "header": whole[:third] + b"x" + whole[third + 1 :],
        "twice": whole + whole,
        "end": whole[:third],
    }[spoil]
    path.write_bytes(gzip.compress(damaged) if packed else damaged)
    told = "12 files" if spoil == "twice" else "6 files"
    with pytest.raises(GuieError, match=rf"x.tar: .*\nIts first {told} can be used.*set complete to False to use"):
        prepare([WebDataset(str(path))], max_bad=0.9)
    manifest, found = prepare([WebDataset(str(path), complete=False)], max_bad=0.9)
    assert len(manifest) >= 3
    assert len(found.told) == 1
    assert "what comes after it is lost" in found.told[0]
    if packed:
        path.write_bytes(gzip.compress(whole)[:-9])
        with pytest.raises(GuieError, match="gzip data end too early: it is truncated"):
            list(WebDataset(str(path)).rows())


def test_a_shard_missing_between_others_is_an_error(tmp_path: Path) -> None:
    for number in (0, 2, 3):
        tar(tmp_path / f"cars-{number:06d}.tar", [("1.jpg", image(number)), ("1.cls", b"1")])
    pattern = str(tmp_path / "cars-*.tar")
    with pytest.raises(GuieError, match=r"cars-\*.tar: the set is not complete:\n  cars-000001.tar is missing\nFetch"):
        list(WebDataset(pattern).rows())
    assert len(list(WebDataset(pattern, complete=False).rows())) == 3
    # shards by their names are those that are meant
    assert len(list(WebDataset(sorted(map(str, tmp_path.iterdir()))).rows())) == 3


@pytest.mark.parametrize("by_json", [False, True])
def test_labels_that_are_texts_are_numbered_as_in_tables(tmp_path: Path, by_json: bool) -> None:
    texts = ["zebra", "ape", "5", "ape ", "\u732b", "Bear"] * 30
    for shard in range(2):
        members = []
        for number, text in enumerate(texts[shard * 90 : shard * 90 + 90]):
            label = json.dumps({"kind": text}) if by_json else text
            members += [(f"{number}.jpg", image(number)), (f"{number}.{'json' if by_json else 'cls'}", label.encode())]
        tar(tmp_path / f"x-{shard}.tar", members)
    fields = {"label": "kind"} if by_json else None
    dataset = WebDataset(str(tmp_path / "x-*.tar"), fields=fields)
    table = tmp_path / "t.csv"
    table.write_text("path,label\n" + "".join(f"a,{text}\n" for text in texts))
    theirs = [(row.label, row.name) for row in Table(table).rows()]
    assert [(row.label, row.name) for row in dataset.rows()] == theirs
    assert not dataset.left_out()


def test_a_text_that_is_none_of_the_classes(tmp_path: Path) -> None:
    members = [
        part for n in range(3) for part in ((f"{n}.jpg", image(n)), (f"{n}.cls", [b"cat", b"dgo", b"x" * 90][n]))
    ]
    dataset = WebDataset(str(tar(tmp_path / "x.tar", members)), classes=["dog", "cat"])
    assert [(row.label, row.name) for row in dataset.rows()] == [(1, "cat")]
    assert [reason for _, reason, _ in left_out(dataset)] == [
        "its label is 'dgo', which is not among classes. Did you mean 'dog'?",
        f"its label is '{'x' * 59}..., which is not among classes",
    ]


def test_what_json_has_instead_of_the_label_is_told(tmp_path: Path) -> None:
    members = [("1.jpg", image(1)), ("1.json", b'{"kind": 1, "id": 2}'), ("2.jpg", image(2)), ("2.txt", b"x")]
    dataset = WebDataset(str(tar(tmp_path / "x.tar", members)), fields={"label": "class"})
    assert list(dataset.rows()) == []
    assert [reason for _, reason, _ in left_out(dataset)] == [
        "no label: its json has no 'class'; it has 'kind', 'id'",
        "no label: its json has no 'class'; the sample has none, only jpg, txt",
    ]


def test_findings_reach_the_quarantine(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [("1.jpg", image(1)), ("1.cls", b"1"), ("2.jpg", b"no image"), ("2.cls", b"2")])
    manifest, quarantine = prepare([WebDataset(str(tmp_path / "a.tar"))], max_bad=0.5)
    assert len(manifest) == 1
    assert quarantine.count("bad") == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no tar file: it has no bytes"),
        (b"<html>" * 100, "no tar file: the header at byte 0 is damaged"),
        (b"short", "no tar file: the file ends inside the header at byte 0"),
        (b"BZh9" * 200, "packed by bzip2, inside which nothing can be found; unpack it"),
        (b"\x1f\x8b" + b"no gzip" * 100, "no tar file: its gzip data are damaged"),
        (gzip.compress(b"<html>" * 100), "no tar file: the header at byte 0 is damaged"),
    ],
)
def test_what_is_no_tar_file(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(GuieError, match=message):
        list(WebDataset(str(tmp_path / "x.tar")).rows())


def test_files_that_are_not_there(tmp_path: Path) -> None:
    tar(tmp_path / "a-0.tar", [])
    with pytest.raises(GuieError, match=r"2 of 3 shards are not there: .*a-1.tar, .*a-2.tar; .* holds a-0.tar"):
        list(WebDataset(str(tmp_path / "a-{0..2}.tar")).rows())
    with pytest.raises(GuieError, match=r"b-\*.tar: no file matches; .* holds a-0.tar"):
        list(WebDataset(str(tmp_path / "b-*.tar")).rows())
    assert list(WebDataset([str(tmp_path / "a-0.tar")]).rows()) == []


def test_braces() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{b,a}-{1..0}") == ["b-1", "b-0", "a-1", "a-0"]
    assert expand_braces("{x}-{9..10}") == ["{x}-9", "{x}-10"]
    for pattern in ("{000000..999999999}", "{1..1000}{1..1001}"):
        with pytest.raises(UsageError, match="more than a million"):
            expand_braces(pattern)


def test_options(tmp_path: Path) -> None:
    path = tar(tmp_path / "cars.0000.tar", [("1.jpg", image(1)), ("1.png", image(2, "PNG")), ("1.id.txt", b"4")])
    settings = {"type": "webdataset", "files": [str(path)], "label": "ID.txt", "images": ["png"]}
    (row,) = build("datasets", settings).rows()
    assert (row.label, row.image.read(), row.source) == (4, image(2, "PNG"), "cars")
    for wrong, message in (
        ({"files": []}, "files is empty"),
        ({"files": "a", "images": "jpg"}, "are lists"),
        ({"files": "a", "fields": {"lable": "x"}}, "Did you mean 'label'"),
    ):
        with pytest.raises(UsageError, match=message):
            WebDataset(**wrong)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_give_rows_findings_or_an_error(tmp_path: Path, data: st.DataObject) -> None:
    """Headers with changed bytes, whose checksums are made right again so that what is behind them is reached."""
    members = [("a" * 120 + ".jpg", image(1)), ("a" * 120 + ".cls", b"1"), ("b.jpg", image(2)), ("b.cls", b"2")]
    changed = bytearray(tar(tmp_path / "good.tar", members, tarfile.PAX_FORMAT).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        block = 512 * data.draw(st.integers(0, 5))
        for _ in range(data.draw(st.integers(1, 6))):
            place = data.draw(st.sampled_from([*range(0, 8), *range(124, 136), 156, 482, *range(257, 265), 345, 504]))
            changed[block + place] = data.draw(st.sampled_from([0, 32, 48, 49, 55, 56, 128, 255, *b"xgLKS5"]))
        header = changed[block : block + 512]
        changed[block + 148 : block + 156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
    path = tmp_path / "x.tar"
    path.write_bytes(changed[: data.draw(st.sampled_from([len(changed), 700, 2048, 3000]))])
    dataset = WebDataset(str(path))
    try:
        for row in dataset.rows():
            row.image.read()
    except GuieError:
        return
    assert all(f"{item.place}: {item.reason}".encode() for item in dataset.left_out())
