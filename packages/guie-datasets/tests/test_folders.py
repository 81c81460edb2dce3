"""A folder of class folders, as people have them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from guie_core import GuieError, UsageError
from guie_datasets import ClassFolders, prepare
from guie_datasets.testing import DatasetContract


def fill(root: Path, tree: dict[str, list[str]]) -> Path:
    for number, (folder, names) in enumerate(tree.items()):
        (root / folder).mkdir(parents=True)
        for place, name in enumerate(names):
            path = root / folder / name
            if path.suffix.lower() in (".jpg", ".png", ".jpeg", ".webp"):
                Image.new("RGB", (20 + place, 16), (40 * number, 20 * place, 90)).save(path)
            else:
                path.write_text("not an image")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tree = {
        "zebra": ["b.jpg", "a.PNG", "C.jpeg"],
        "Ape": ["10.jpg", "9.jpg"],
        "猫": ["一.webp", ".hidden.jpg", "._a.jpg", "notes.txt", "raw.CR2", "README"],
        ".cache": ["x.jpg"],
        "empty": [],
    }
    fill(tmp_path / "pets", tree)
    (tmp_path / "pets" / "labels.csv").write_text("a,b")
    (tmp_path / "pets" / ".DS_Store").write_text("")
    (tmp_path / "pets" / "zebra" / "thumbnails").mkdir()
    return tmp_path / "pets"


class TestContract(DatasetContract):
    @pytest.fixture
    def dataset(self, root: Path) -> ClassFolders:
        return ClassFolders(root)


def test_rows(root: Path) -> None:
    dataset = ClassFolders(root)
    assert dataset.class_names() == ["Ape", "empty", "zebra", "猫"]
    rows = list(dataset.rows())
    assert [row.name for row in rows] == [Path(row.image.path).parent.name for row in rows]
    assert [(row.label, row.image.path.removeprefix(f"{root}/")) for row in rows] == [
        (0, "Ape/10.jpg"),
        (0, "Ape/9.jpg"),
        (2, "zebra/C.jpeg"),
        (2, "zebra/a.PNG"),
        (2, "zebra/b.jpg"),
        (3, "猫/一.webp"),
    ]
    assert {(row.source, row.category) for row in rows} == {("pets", "")}


def test_source_and_category(root: Path) -> None:
    rows = list(ClassFolders(str(root), source="mine", category="animals").rows())
    assert {(row.source, row.category) for row in rows} == {("mine", "animals")}
    by_class = ClassFolders(root, category={"Ape": "primates", "zebra": "horses"})
    assert [row.category for row in by_class.rows()] == ["primates"] * 2 + ["horses"] * 3 + [""]


def test_what_is_no_image_is_listed(root: Path) -> None:
    dataset = ClassFolders(root)
    assert len(list(dataset.rows())) == 6
    left_out = {(item.place.removeprefix(f"{root}/"), item.reason) for item in dataset.left_out()}
    assert left_out == {
        ("labels.csv", "not in a class folder"),
        ("empty", "a class without images"),
        ("zebra/thumbnails", "in a folder inside a class folder; set recursive to True to take such images"),
        ("猫/README", "no suffix"),
        ("猫/notes.txt", "not an image by its suffix '.txt'"),
        ("猫/raw.CR2", ".cr2 is not read; convert it, to .jpg for example"),
    }
    manifest, quarantine = prepare([dataset])
    assert manifest.column("label").tolist() == [0, 0, 1, 1, 1, 2]
    assert quarantine.count("left out") == 6
    assert quarantine.count("bad") == 0


def test_a_file_that_only_looks_like_an_image_is_bad(root: Path) -> None:
    (root / "Ape" / "11.jpg").write_text("<html>")
    with pytest.raises(GuieError, match=r"1 of 7 images are bad .*\n  .*Ape/11.jpg: not an image"):
        prepare([ClassFolders(root)])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (None, "no such folder. Give the folder that holds one folder of images for each class"),
        ({".": ["a.jpg", "b.jpg"]}, "no class folders in it, only 2 files. Put the images of each class into a folder"),
        ({"a": [], "b": ["x.txt"]}, "no images in its 2 class folders. Images are files such as"),
        ({"data/a": ["1.jpg"], "data/b": ["1.jpg"]}, "no images in its 1 class folder. Did you mean {root}/data?"),
    ],
)
def test_folders_that_look_different(tmp_path: Path, tree: dict[str, list[str]] | None, message: str) -> None:
    root = tmp_path / "root"
    if tree == {".": ["a.jpg", "b.jpg"]}:
        root.mkdir()
        for name in tree["."]:
            Image.new("RGB", (4, 4)).save(root / name)
    elif tree is not None:
        fill(root, tree)
    with pytest.raises(GuieError) as caught:
        list(ClassFolders(root).rows())
    assert message.format(root=root) in str(caught.value)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("")
    with pytest.raises(GuieError, match=r"a.zip: not a folder"):
        list(ClassFolders(tmp_path / "a.zip").rows())


def test_names_that_unzip_wrote_as_escapes(tmp_path: Path) -> None:
    """RP2K's folders as two unzip programs leave them, and a class that both have unpacked."""
    fill(tmp_path, {"#U4e2d#U6587": ["b.jpg"], "中文": ["a.jpg", "c.jpg"], "#L01f431x": ["a.jpg"], "#Ud800": ["a.jpg"]})
    fill(tmp_path, {"#U002fa": ["a.jpg"]})  # a slash is in no file's name
    dataset = ClassFolders(tmp_path, category={"中文": "words"})
    assert dataset.class_names() == ["#U002fa", "#Ud800", "中文", "🐱x"]
    rows = list(dataset.rows())
    assert [(row.label, row.name, row.category) for row in rows if row.label == 2] == [(2, "中文", "words")] * 3
    places = [row.image.path.removeprefix(f"{tmp_path}/") for row in rows]
    assert places[:2] == ["#U002fa/a.jpg", "#Ud800/a.jpg"]
    assert places[2:] == ["#U4e2d#U6587/b.jpg", "中文/a.jpg", "中文/c.jpg", "#L01f431x/a.jpg"]
    assert not dataset.left_out()


def test_links_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    fill(tmp_path, {"root/a": ["1.jpg"], "outside/b": ["2.jpg", "3.jpg"]})
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a" / "inner.jpg").symlink_to("1.jpg")
    (root / "a" / "link.jpg").symlink_to(outside / "b" / "2.jpg")
    (root / "a" / "nowhere.jpg").symlink_to("gone.jpg")
    (root / "b").symlink_to(outside / "b")
    dataset = ClassFolders(root)
    places = [row.image.path.removeprefix(f"{root}/") for row in dataset.rows()]
    assert places == ["a/1.jpg", "a/inner.jpg", "a/nowhere.jpg"]
    bad = [item for item in dataset.left_out() if item.bad]
    assert [item.place.removeprefix(f"{root}/") for item in bad] == ["a/link.jpg", "b/2.jpg", "b/3.jpg"]
    assert all("set follow_links to True to allow it" in item.reason for item in bad)
    followed = ClassFolders(root, follow_links=True)
    assert len(list(followed.rows())) == 6
    assert not followed.left_out()
    # the root itself may be a link
    (tmp_path / "shortcut").symlink_to(root)
    assert len(list(ClassFolders(tmp_path / "shortcut").rows())) == 3


def test_a_folder_that_cannot_be_listed_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "Ape":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(GuieError, match=r"Ape: cannot be listed: Permission denied. Nobody can tell how many images"):
        prepare([ClassFolders(root)], max_bad=0.9)
    dataset = ClassFolders(root, complete=False)
    assert [row.label for row in dataset.rows()] == [2, 2, 2, 3]
    bad = [(item.place, item.reason) for item in dataset.left_out() if item.bad]
    assert bad == [(str(root / "Ape"), "cannot be listed: Permission denied")]


def test_names_that_are_no_utf8_are_bad(root: Path) -> None:
    os.makedirs(os.fsencode(root) + b"/\xff")
    shutil.copy(root / "Ape" / "9.jpg", os.fsencode(root) + b"/Ape/\xfe.jpg")
    manifest, quarantine = prepare([ClassFolders(root)], max_bad=0.5)
    assert len(manifest) == 6
    bad = [finding.place.removeprefix(f"{root}/") for finding in quarantine if finding.kind == "bad"]
    assert bad == ["\ufffd", "Ape/\ufffd.jpg"]


def test_a_link_to_itself_is_one_bad_image(root: Path) -> None:
    """Of which the system cannot even tell whether it is a folder."""
    (root / "Ape" / "loop.jpg").symlink_to("loop.jpg")
    (root / "loop").symlink_to("loop")
    manifest, quarantine = prepare([ClassFolders(root)], max_bad=0.5)
    assert len(manifest) == 6
    (bad,) = [finding for finding in quarantine if finding.kind == "bad"]
    assert (bad.place, bad.reason) == (
        str(root / "Ape" / "loop.jpg"),
        "cannot be read: Too many levels of symbolic links",
    )
    assert str(root / "loop") in [finding.place for finding in quarantine if finding.kind == "left out"]


def test_what_is_in_folders_inside_class_folders(tmp_path: Path) -> None:
    tree = {
        "person/nested": ["1.jpg", "2.jpg", "x.txt"],
        "person/nested/deep": ["3.png"],
        "person": ["0.jpg"],
        "cat": ["4.jpg"],
    }
    for folder in tree:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name in tree[folder]:
            Image.new("RGB", (9, 9)).save(tmp_path / folder / name, "JPEG")
    (tmp_path / "person" / "round").symlink_to(tmp_path / "person", target_is_directory=True)
    dataset = ClassFolders(tmp_path)
    assert [Path(row.image.path).name for row in dataset.rows()] == ["4.jpg", "0.jpg"]
    nested, _ = dataset.left_out()
    assert (nested.place, nested.count) == (str(tmp_path / "person" / "nested"), 3)
    everything = ClassFolders(tmp_path, recursive=True)
    found = [(row.label, row.name, Path(row.image.path).name) for row in everything.rows()]
    assert found == [
        (0, "cat", "4.jpg"),
        (1, "person", "0.jpg"),
        (1, "person", "1.jpg"),
        (1, "person", "2.jpg"),
        (1, "person", "3.png"),
    ]
    assert [Path(item.place).name for item in everything.left_out()] == ["x.txt", "round"]


def test_folders_of_splits_give_one_label_a_class(tmp_path: Path) -> None:
    fill(
        tmp_path, {"train/cat": ["1.jpg", "2.jpg"], "train/dog": ["3.jpg"], "val/cat": ["4.jpg"], "val/yak": ["5.jpg"]}
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "train" / "list.txt").touch()
    dataset = ClassFolders(tmp_path, splits=["train", "val"], category={"cat": "pets"})
    assert [(row.label, row.name, row.split, row.category, Path(row.image.path).name) for row in dataset.rows()] == [
        (0, "cat", "train", "pets", "1.jpg"),
        (0, "cat", "train", "pets", "2.jpg"),
        (1, "dog", "train", "", "3.jpg"),
        (0, "cat", "val", "pets", "4.jpg"),
        (2, "yak", "val", "", "5.jpg"),
    ]
    assert sorted(Path(item.place).name for item in dataset.left_out()) == ["list.txt", "other"]
    assert dataset.class_names() == ["cat", "dog", "yak"]
    manifest, _ = prepare([dataset], keep_duplicates=True)
    assert manifest.column("split").tolist() == ["train"] * 3 + ["val"] * 2
    with pytest.raises(UsageError, match=r"splits names a folder 'vla' that is not in it. Did you mean 'val'"):
        list(ClassFolders(tmp_path, splits=["train", "vla"]).rows())
    with pytest.raises(UsageError, match=r"splits is a list of folders, such as \['train'\]"):
        ClassFolders(tmp_path, splits="train")


def test_folders_of_splits_are_recognised(tmp_path: Path) -> None:
    fill(tmp_path, {"train/cat": ["1.jpg"], "val/cat": ["4.jpg"]})
    with pytest.raises(
        GuieError, match=r"They seem to be splits, with class folders in them: set splits to train,val\."
    ):
        list(ClassFolders(tmp_path).rows())


def test_a_category_for_a_class_that_is_not_there_is_told(root: Path) -> None:
    with pytest.raises(UsageError, match=r"category names a class 'ape' that there is not. Did you mean 'Ape'"):
        list(ClassFolders(root, category={"ape": "x"}).rows())


def test_photos_that_are_not_read_are_told_by_kind(root: Path) -> None:
    for number in range(10):
        (root / "empty" / f"IMG_{number}.HEIC").touch()
    dataset = ClassFolders(root)
    assert len(list(dataset.rows())) == 6
    reasons = [item.reason for item in dataset.left_out()]
    assert reasons.count(".heic is not read; convert it, to .jpg for example") == 10
    assert "a class without images" in reasons


def test_where_the_home_folder_is_not_known() -> None:
    for root in ("~nosuch/pictures", "a\0b"):
        with pytest.raises(UsageError):
            ClassFolders(root)
