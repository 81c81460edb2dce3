"""CSV and Parquet tables of images, as people and programs write them."""

from __future__ import annotations

import csv
import io
import tracemalloc
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from guie_core import GuieError, UsageError, build
from guie_datasets import Dataset, ImageRef, prepare
from guie_datasets.rows import UNKNOWN
from guie_datasets.sets.tables import Table, read_table
from guie_datasets.testing import DatasetContract


def pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10 + number, 8), (30 * number % 256, 40, 50)).save(folder / name)


def table(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def short(dataset: Dataset) -> list[tuple[str, int]]:
    return [(Path(row.image.path).name, row.label) for row in dataset.rows()]


def bad(dataset: Dataset) -> list[tuple[str, str]]:
    list(dataset.rows())
    assert all(item.bad for item in dataset.left_out())
    return [(item.place.rpartition(", ")[2], item.reason) for item in dataset.left_out()]


class TestCsvContract(DatasetContract):
    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Table:
        pictures(tmp_path, *(f"i/{n}.png" for n in range(20)))
        lines = "".join(f"i/{n}.png,{['ab', 'cd', 'ef'][n % 3]}\n" for n in range(20))
        return Table(table(tmp_path / "t.csv", f"path,label\n{lines}nothing\n"))


class TestParquetContract(DatasetContract):
    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Table:
        pictures(tmp_path, *(f"i/{n}.png" for n in range(20)))
        frame = pd.DataFrame({"file": [f"{n}.png" for n in range(20)], "class": [n % 4 for n in range(20)]})
        frame.to_parquet(tmp_path / "t.parquet")
        return Table(tmp_path / "t.parquet", root=tmp_path / "i", columns={"path": "file", "label": "class"})


def test_rows_keep_the_tables_order_and_what_it_says(tmp_path: Path) -> None:
    text = 'label,path,category,split,role,name,other\n7,b.png,cars,test,query,"a, b",x\n3,"a ""1"".png",,,,\'x\',y\n'
    dataset = Table(table(tmp_path / "t.csv", text), category="things")
    first, second = dataset.rows()
    assert first.image == ImageRef(str(tmp_path / "b.png"))
    assert (first.label, first.source, first.category) == (7, "t", "cars")
    assert (first.split, first.role, first.name) == ("test", "query", "a, b")
    assert (Path(second.image.path).name, second.category, second.name) == ('a "1".png', "things", "'x'")
    without = Table(tmp_path / "t.csv", columns={"split": "", "category": "other"}, source="s")
    assert [(row.split, row.category, row.source) for row in without.rows()] == [("", "x", "s"), ("", "y", "s")]
    assert Table(tmp_path / "t.csv", columns={"path": "name"}).provenance()["columns"] == {"path": "name"}


def test_text_labels_are_numbered_in_their_order(tmp_path: Path) -> None:
    text = "path,label\n1.png,zebra\n2.png,7up\n3.png,Ape\n4.png, zebra \n5.png,猫\n6.png,12\n"
    rows = list(Table(table(tmp_path / "t.csv", text)).rows())
    assert [(row.label, row.name) for row in rows] == [
        (3, "zebra"),
        (1, "7up"),
        (2, "Ape"),
        (3, "zebra"),
        (4, "猫"),
        (0, "12"),
    ]


def test_labels_of_the_wrong_type_are_bad_rows(tmp_path: Path) -> None:
    labels = ["4", "5.0", "cat", "1.5", "", "-2", "nan", " 6 ", "9" * 30, "٣", "1e3", "True"]
    text = "path,label\n" + "".join(f"{n}.png,{label}\n" for n, label in enumerate(labels)) + "x.png,8\n" * 6
    dataset = Table(table(tmp_path / "t.csv", text))
    assert [label for _, label in short(dataset)] == [4, 5, 6, 8, 8, 8, 8, 8, 8]
    found = dict(bad(dataset))
    assert found["line 4"] == "its label is 'cat', not a whole number"
    assert found["line 6"] == "it has no label"
    assert found["line 7"] == "its label is -2; labels count from 0"
    assert list(found) == [f"line {n}" for n in (4, 5, 6, 7, 8, 10, 11, 12, 13)]


@pytest.mark.parametrize(
    ("labels", "good", "problems"),
    [
        ([3, None, 4], [3, 4], {"row 2": "it has no label"}),  # pandas makes floats of them
        ([1.0, 2.5, float("nan")], [1], {"row 2": "its label is 2.5, not a whole number", "row 3": "it has no label"}),
        ([True, False], [], {f"row {n}": f"its label is {n == 1}, not a whole number" for n in (1, 2)}),
        (["b", None, "a"], [1, 0], {"row 2": "it has no label"}),
        ([b"x", b"y"], [], {f"row {n}": f"its label is b'{'xy'[n - 1]}', not a whole number" for n in (1, 2)}),
        (pd.Categorical(["z", "y"]), [1, 0], {}),
    ],
)
def test_labels_in_parquet(tmp_path: Path, labels: Any, good: list[int], problems: dict[str, str]) -> None:
    frame = pd.DataFrame({"path": [f"{n}.png" for n in range(len(labels))], "label": labels})
    frame.to_parquet(tmp_path / "t.parquet")
    dataset = Table(tmp_path / "t.parquet")
    assert [row.label for row in dataset.rows()] == good
    assert dict(bad(dataset)) == problems


def test_paths_stay_within_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    pictures(root, "a.png", "sub/b.png")
    pictures(outside, "secret.png", "root.png")
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "good-link.png").symlink_to("a.png")
    (root / "folder").symlink_to(outside)
    (tmp_path / "rooted").mkdir()
    paths = [
        *("a.png", "sub/b.png", "./sub/../a.png", str(root / "a.png"), "good-link.png", "not-there.png"),
        *(
            "../outside/secret.png",
            str(outside / "secret.png"),
            "link.png",
            "folder/secret.png",
            "sub/../../rooted/a",
            "",
        ),
    ]
    frame = pd.DataFrame({"path": [*paths, "nul\0.png", None], "label": 1})
    frame.to_parquet(tmp_path / "t.parquet")
    dataset = Table(tmp_path / "t.parquet", root=root)
    assert [row.image.path.removeprefix(f"{root}/") for row in dataset.rows()] == [
        *("a.png", "sub/b.png", "a.png", "a.png", "good-link.png", "not-there.png")
    ]
    found = bad(dataset)
    assert [place for place, _ in found] == [f"row {n}" for n in range(7, 15)]
    assert [reason.split(" ", 1)[1] for _, reason in found[:5]] == [
        *[f"leads out of the folder {root}"] * 2,
        *[f"is a link, or lies behind one, that leads out of the folder {root}"] * 2,
        f"leads out of the folder {root}",
    ]
    assert [reason for _, reason in found[5:]] == ["it has no path", r"'nul\x00.png' is no path", "it has no path"]
    # without a root, paths may lead anywhere, and are relative to the table
    paths = f"root/a.png,1\n{outside}/secret.png,2\nroot/../{root.name}/a.png,1\n"
    free = Table(table(tmp_path / "t.csv", f"path,label\n{paths}"))
    manifest, _ = prepare([free], keep_duplicates=True)
    assert manifest.column("path").tolist() == [str(root / "a.png"), str(outside / "secret.png"), str(root / "a.png")]


def test_encodings_and_delimiters(tmp_path: Path) -> None:
    text = "path{0}label\n猫.png{0}3\n"
    for name, encoding, delimiter, options in (
        ("a.csv", "utf-8-sig", ",", {}),
        ("b.tsv", "utf-8", "\t", {}),
        ("c.csv", "utf-8", ";", {"delimiter": ";"}),
        ("d.csv", "utf-16", ",", {"encoding": "utf-16"}),
        ("e.txt", "gb18030", " ", {"encoding": "gb18030", "delimiter": " "}),
    ):
        path = table(tmp_path / name, text.format(delimiter), encoding)
        assert short(Table(path, **options)) == [("猫.png", 3)]  # type: ignore[arg-type]


def test_bytes_that_are_no_text_make_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,label,name\na\xff.png,1,x\nb.png,2,\xfe\nc.png,3,z\nd.png,\xfd,z\n")
    dataset = Table(tmp_path / "t.csv")
    assert short(dataset) == [("c.png", 3)]
    assert [place for place, _ in bad(dataset)] == ["line 2", "line 3", "line 5"]
    for item in dataset.left_out():
        item.reason.encode()


def test_lines_that_are_no_rows(tmp_path: Path) -> None:
    text = 'path,label\na.png,1\nb.png\n\nc.png,2,3\n"d\nd.png",4\n"e"x,5\nf.png,6\n"g.png,7\nh.png,8\n'
    dataset = Table(table(tmp_path / "t.csv", text))
    assert [(Path(row.image.path).name, row.label) for row in dataset.rows()] == [
        ("a.png", 1),
        ("d\nd.png", 4),
        ("f.png", 6),
    ]
    assert bad(dataset) == [
        ("line 3", "1 values for 2 columns"),
        ("line 5", "3 values for 2 columns"),
        ("line 8", "no CSV: ',' expected after '\"'; a quotation mark may be missing"),
        ("line 10", "no CSV: unexpected end of data, lines 10 to 11 are lost; a quotation mark may be missing"),
    ]
    open_quote = 'path,label\n"a.png,1\n' + "x.png,2\n" * 20_000
    dataset = Table(table(tmp_path / "t.csv", open_quote))
    assert len(short(dataset)) > 3000
    assert "field larger than field limit" in dataset.left_out()[0].reason


def test_findings_name_table_and_line(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    dataset = Table(table(tmp_path / "t.csv", "path,label\na.png,1\n,2\ngone.png,1\n"))
    manifest, quarantine = prepare([dataset], max_bad=0.7)
    assert len(manifest) == 1
    assert [(finding.place, finding.reason) for finding in quarantine] == [
        (f"{tmp_path}/gone.png", "cannot be read: No such file or directory"),
        (f"{tmp_path}/t.csv, line 3", "it has no path"),
    ]
    assert list(dataset.sources()) == [tmp_path / "t.csv", tmp_path / "a.png"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "no table: it is empty"),
        (b"\n\n", {}, "no table: it is empty"),
        (b"image,label\n1,2\n", {}, r"no column 'path' for the path. It has 'image', 'label'. Name it: columns=dict"),
        (b"paths,label\n1,2\n", {}, r"no column 'path' for the path. Did you mean 'paths'"),
        (b"path,label,name\n1,2,3\n", {"columns": {"category": "kind"}}, "no column 'kind' for the category"),
        (b"path;label\n1;2\n", {}, "its columns seem to be separated by ';'; set delimiter=';'"),
        (b"path,label,label\n1,2,3\n", {}, "it has more than one column 'label'"),
        ("path,label\n1,2\n".encode("utf-16"), {}, "if it is UTF-16, set encoding='utf-16'"),
        (b"PAR1 and then nothing", {}, "a damaged Parquet file"),
        (b"path,label\n1,2\n", {"encoding": "utf-99"}, "there is no text encoding 'utf-99'"),
    ],
)
def test_what_is_no_table_of_images(tmp_path: Path, content: bytes, options: dict[str, Any], message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(GuieError, match=message):
        list(Table(tmp_path / "t.csv", **options).rows())


def test_parquet_columns_that_hold_no_single_values(tmp_path: Path) -> None:
    pd.DataFrame({"path": [["a", "b"]], "label": [1]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(GuieError, match=r"the column 'path' holds list<.*>, not one value for each row"):
        list(Table(tmp_path / "t.parquet").rows())


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GuieError, match=r"t.csv: cannot be read: No such file"):
        list(Table(tmp_path / "t.csv").rows())
    with pytest.raises(GuieError, match="cannot be read: Is a directory"):
        list(Table(tmp_path).rows())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"lable": "x"}}, "Did you mean 'label'"),
        ({"delimiter": ";;"}, "delimiter must be one character"),
        ({"delimiter": '"'}, "delimiter must be one character"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Table("t.csv", **options)


def test_it_is_built_from_settings(tmp_path: Path) -> None:
    settings = {"type": "table", "file": str(tmp_path / "t.csv"), "columns": {"path": "image"}, "root": str(tmp_path)}
    dataset = build("datasets", settings)
    assert (dataset.file, dataset.root) == (tmp_path / "t.csv", tmp_path)


def test_a_long_table_is_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("path,label\n" + "a-folder/with-images/0123456789.jpg,12345\n" * 20_000)
    rows = Table(path).rows()
    next(rows)
    tracemalloc.start()
    assert sum(1 for _ in rows) == 19_999
    assert sum(1 for _ in Table(path).sources()) == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000  # a tenth of what the rows would take


def test_parts_of_files(tmp_path: Path) -> None:
    text = "path,label,offset,length,compression\na.bin,0,7,9,\nb.png,1,,,\nb.png,1,0,-1,\na.bin.gz,2,3,4,gzip\n"
    dataset = Table(table(tmp_path / "t.csv", text))
    folder = str(tmp_path)
    assert [row.image for row in dataset.rows()] == [
        ImageRef(f"{folder}/a.bin", 7, 9),
        ImageRef(f"{folder}/b.png"),
        ImageRef(f"{folder}/b.png"),
        ImageRef(f"{folder}/a.bin.gz", 3, 4, "gzip"),
    ]
    text = "path,label,offset,length,compression\na,0,-7,9,\na,0,1.5,9,\na,0,x,9,\na,0,0,9,rar\na,0,,9,\n"
    wrong = Table(table(tmp_path / "t.csv", text))
    assert not list(wrong.rows())
    assert [item.reason for item in wrong.left_out()] == [
        "offset '-7' and length '9' name no part of a file",
        "offset '1.5' and length '9' name no part of a file",
        "offset 'x' and length '9' name no part of a file",
        "its file is packed by 'rar', not by gzip, zlib",
        "offset '' and length '9' name no part of a file",
    ]
    length_alone = Table(table(tmp_path / "t.csv", "path,label,length\na.mp4,0,12.5\n"))  # something else
    assert [row.image for row in length_alone.rows()] == [ImageRef(f"{folder}/a.mp4")]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXT, TEXT), max_size=8), delimiter=st.sampled_from(",;\t|"))
def test_what_the_csv_module_writes_is_read_back(tmp_path: Path, rows: list[tuple[str, str]], delimiter: str) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter).writerows([("path", "label"), *rows])
    (tmp_path / "t.csv").write_bytes(buffer.getvalue().encode())
    lines = read_table(tmp_path / "t.csv", ["label", "path"], delimiter=delimiter)
    assert [line.values for line in lines] == [[label, path] for path, label in rows]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([b"path,label\n", b"path,label,name,source\r\n", b"", b"\xef\xbb\xbfpath,label\n"]),
    parts=st.lists(
        st.one_of(
            st.binary(max_size=6), st.sampled_from([b'"', b",", b"\n", b"a.png,1\n", b"../x,y\n", b'"a\nb",2\n'])
        ),
        max_size=20,
    ),
    rooted=st.booleans(),
)
def test_any_bytes_give_rows_findings_or_an_error(
    tmp_path: Path, start: bytes, parts: list[bytes], rooted: bool
) -> None:
    (tmp_path / "t.csv").write_bytes(start + b"".join(parts))
    dataset = Table(tmp_path / "t.csv", root=tmp_path if rooted else None)
    try:
        rows = list(dataset.rows())
    except GuieError as error:
        str(error).encode()
        return
    for row in rows:
        assert row.label >= 0
        "".join((row.image.path, row.source, row.category, row.name)).encode()
        assert not rooted or row.image.path.startswith(f"{tmp_path}/")
    assert all(item.reason.encode() for item in dataset.left_out())


def test_a_name_that_is_too_long_is_one_bad_row(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(f"path,label\na.png,1\n{'x' * 300}.png,1\n")
    manifest, quarantine = prepare([Table(tmp_path / "t.csv")], max_bad=0.5)
    assert len(manifest) == 1
    assert [finding.reason for finding in quarantine] == ["cannot be read: File name too long"]
    assert list(Table(tmp_path / "t.csv").sources()) == [tmp_path / "t.csv", tmp_path / "a.png"]


def test_preparing_reads_the_rows_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table alone is recorded beside the images, which the rows tell of."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path,label\na.png,1\n")
    passes = []
    rows = Table.rows
    monkeypatch.setattr(Table, "rows", lambda self: passes.append(1) or rows(self))
    manifest, _ = prepare([Table(tmp_path / "t.csv")])
    assert len(passes) == 1
    sources = manifest.provenance["datasets"][0]["sources"]
    assert [file["path"] for file in sources["files"]] == [str(tmp_path / "t.csv")]
    assert sources["images"]["files"] == 1


def test_a_table_in_another_encoding_says_how_to_set_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("path,label\na.png,苹果\n".encode("gb18030"))
    table = Table(tmp_path / "t.csv")
    assert not list(table.rows())
    (item,) = table.left_out()
    assert item.reason.endswith("is no text in UTF-8; say what it is in, encoding='gb18030' for example")
    assert [row.name for row in Table(tmp_path / "t.csv", encoding="gb18030").rows()] == ["苹果"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [(pa.timestamp("us"), 2**62), (pa.date64(), 2**60), (pa.duration("s"), 2**62)],
)
def test_dates_beyond_python_s_are_bad_rows(tmp_path: Path, kind: pa.DataType, value: int) -> None:
    for column in ("name", "path", "label"):
        columns = {"path": pa.array(["a.png", "b.png"]), "label": pa.array([1, 1]), "name": pa.array(["x", "y"])}
        columns[column] = pa.array([value, 0], pa.int64()).cast(kind)
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        table = Table(tmp_path / "t.parquet")
        rows = list(table.rows())
        first = table.left_out()[0]
        assert first.bad
        assert first.place.endswith("row 1")
        assert len(rows) + len(table.left_out()) == 2


def test_where_no_label_is_needed(tmp_path: Path) -> None:
    """A row without one is a row, and a table without the column a table; the label of a good one is as ever."""
    dataset = Table(table(tmp_path / "t.csv", "path,label\na.png,7\nb.png,\nc.png,-1\nd.png,x\n,3\n"))
    dataset.needs_labels = False
    assert [(Path(row.image.path).name, row.label) for row in dataset.rows()] == [
        ("a.png", 7),
        ("b.png", UNKNOWN),
        ("c.png", UNKNOWN),
        ("d.png", UNKNOWN),
    ]
    assert [item.place for item in dataset.left_out()] == [f"{tmp_path}/t.csv, line 6"]
    bare = Table(table(tmp_path / "bare.csv", "path\na.png\n"))
    with pytest.raises(GuieError, match="no column 'label'"):
        list(bare.rows())
    bare.needs_labels = False
    assert [row.label for row in bare.rows()] == [UNKNOWN]
    asked = Table(tmp_path / "bare.csv", columns={"label": "class"})
    asked.needs_labels = False
    with pytest.raises(GuieError, match="no column 'class'"):
        list(asked.rows())
