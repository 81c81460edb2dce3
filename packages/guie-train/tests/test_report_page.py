"""The page as a browser's parser sees it, made from real images and real neighbours."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from guie_core import GuieError
from guie_train.report import Images, Report, StageLine, System, render
from guie_train.retrieval import Pairs, evaluate

VOID = {"meta", "link", "img", "br", "hr", "input"}
HOSTILE = "<script>alert('1')</script> \"zero\" & </title><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Elements with their attributes and text; complains about tags that don't match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[tuple[str, str]] = []  # innermost element, text
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append((self.open[-1], " ".join(data.split())))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(text for tag, text in self.text if tag not in ("style", "title"))


@dataclass(frozen=True)
class Exported:
    path: Path
    bytes: int = 14_812_345
    images: int = 64
    max_difference: float = 3.1e-7
    min_cosine: float = 0.9999998
    top5_agreement: float = 1.0
    speed: str = "61 images/s"
    note: str = ""
    prepared: bool = False


@pytest.fixture(scope="module")
def report() -> Report:
    digits = load_digits()
    rows = 600
    values, labels = digits.data[:rows].astype(np.float32), digits.target[:rows].astype(np.int64)
    splits = np.where(labels < 5, "train", "test")
    train, test = np.flatnonzero(splits == "train"), np.flatnonzero(splits == "test")
    test = np.concatenate([test[:80], train[:1]])  # one query whose class has no other image among the queries
    pairs = Pairs(test, test)
    trained = LinearDiscriminantAnalysis(n_components=4).fit(values[train], labels[train])
    spaces = {
        "raw features": values,
        "PCA-8": PCA(8, random_state=0).fit(values[train]).transform(values),
        "trained": trained.transform(values),
    }
    categories = np.where(labels % 2 == 0, "even & whole", "odd")
    systems = []
    for name, space in spaces.items():
        for augmented in (False, True):
            seen = space + (0.01 * values @ np.ones((64, space.shape[1])) if augmented else 0)
            result = evaluate(seen.astype(np.float32), labels, categories, pairs, ("mP@5", "MRR@5", "Recall@1"))
            systems.append(System(name, space.shape[1], augmented, result))

    def image(row: int) -> NDArray[np.uint8]:
        return np.repeat((digits.images[row] * 15.9).astype(np.uint8)[None], 3, axis=0)

    return Report(
        name="digits",
        summary="Which digit is this?",
        command="guie-train experiments/digits.py --profile cpu",
        systems=systems,
        images=Images(labels, splits, image, lambda row: f"digit {labels[row]}", lambda row: f"scan {row}"),
        curves=[
            {"epoch": e, "loss": 1 / e, "lr": 0.01, **({"mP@5": 0.1 * e} if e % 2 == 0 else {})} for e in range(1, 9)
        ],
        chosen_epoch=6,
        exports=[
            Exported(Path("some/folder/saved_model.pt")),
            Exported(Path("model.onnx"), max_difference=0.0, note="without augmentation", prepared=True),
        ],
        stages=[StageLine("head", 75.0, False, "epoch 6 of 8"), StageLine("features", 400.0, True)],
        profile="cpu",
        machine="2 cores",
        finished="2025-01-02 03:04",
        seconds=231.0,
        versions={"torch": "2.14.1"},
    )


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(render(report, tmp_path_factory.mktemp("report") / "report.html").read_text(encoding="utf-8"))


def test_shows_the_score_of_the_trained_system_and_of_the_baseline_with_the_same_views(
    report: Report, page: Page
) -> None:
    by_name = {(s.name, s.augmented): s.result.overall["mP@5"] for s in report.systems}
    assert f"mP@5 on 6 classes {by_name['trained', True]:.2f}" in page.words
    assert f"over raw features ({by_name['raw features', True]:.2f})" in page.words
    for value in by_name.values():
        assert f"{value:.3f}" in page.words


def test_classes_are_called_unseen_only_if_training_has_none_of_them(report: Report, tmp_path: Path) -> None:
    assert "unseen" not in Page(render(report, tmp_path / "a.html").read_text()).words
    splits = np.where(report.images.splits == "train", "other", report.images.splits)
    report = replace(report, images=replace(report.images, splits=splits))
    assert "on 6 unseen classes" in Page(render(report, tmp_path / "b.html").read_text()).words


def test_everything_that_was_handed_over_is_told(page: Page) -> None:
    for text in (
        "guie-train experiments/digits.py --profile cpu",
        "Which digit is this?",
        "saved_model.pt",
        "14.8 MB",
        "3.1·10⁻⁷",
        "0.9999998",
        "75 s",
        "reused",
        "4 min",
        "2 cores",
        "torch 2.14.1",
        "marks epoch 6",
        "even & whole",
        "1 is perfect. 1 of them has no other image of its class and is left out of all means.",
    ):
        assert text in page.words, text
    assert "some/folder" not in page.words


def test_every_image_is_inside_and_described(page: Page) -> None:
    images = page.all("img")
    assert len(images) >= 2 * 11
    for image in images:
        assert image["src"].startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
        assert re.fullmatch(r"(Query|Right|Wrong): digit \d, scan \d+", image["alt"])
        assert 0 < int(image["width"]) <= 96
        assert 0 < int(image["height"]) <= 96
    drawings = [attributes for attributes in page.all("figure") if attributes.get("role") == "img"]
    assert len(drawings) == 3
    assert all("by epoch" in drawing["aria-label"] for drawing in drawings)


def test_right_and_wrong_are_told_apart_without_colour_and_truly(report: Report, page: Page) -> None:
    marks = Counter(text for tag, text in page.text if tag == "span" and text in "✓✗")
    items = [(a["class"].split()[0], a["title"]) for a in page.all("li")]
    labels = report.images.labels
    assert marks["✓"] == sum(kind == "right" for kind, _ in items) + 1  # and one in the explanation
    assert marks["✗"] == sum(kind == "wrong" for kind, _ in items) + 1
    query = None
    for tag, attributes in page.elements:
        if tag == "img":
            kind, row = attributes["alt"].split(":")[0], int(attributes["alt"].rpartition(" ")[2])
            query = row if kind == "Query" else query
            assert kind in ("Query", "Right" if labels[row] == labels[query] else "Wrong")


def test_nothing_comes_from_elsewhere_and_nothing_runs(page: Page) -> None:
    allowed = {"id", "class", "style", "d", "transform", "content", "alt", "title", "aria-label"}
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "action", "data", "srcset"):
                assert value.startswith(("data:", "#")), (tag, name, value)
            elif name not in allowed:
                assert "//" not in (value or ""), (tag, name, value)
            assert "url(" not in (value or "") or "url(#" in value
    styles = " ".join(text for tag, text in page.text if tag == "style")
    assert "url(" not in styles
    assert "@import" not in styles
    policies = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_is_a_document_for_everybody(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == 1
    named = {a["aria-labelledby"] for a in page.all("section") if "aria-labelledby" in a}
    assert named == {"pictures", "scores", "training", "exports", "made"} <= set(ids)
    assert all(a.get("scope") for a in page.all("th"))
    styles = " ".join(text for tag, text in page.text if tag == "style")
    assert "prefers-color-scheme: dark" in styles
    assert "@media print" in styles


def test_hostile_names_stay_text(report: Report, tmp_path: Path) -> None:
    names = Images(
        report.images.labels, report.images.splits, report.images.image, lambda r: HOSTILE, lambda r: HOSTILE
    )
    systems = [replace(s, name=HOSTILE if s.name == "trained" else s.name) for s in report.systems]
    systems = [
        replace(s, result=replace(s.result, categories=np.full(len(s.result.categories), HOSTILE))) for s in systems
    ]
    systems[0].result.categories[0] = "other"
    hostile = replace(
        report, images=names, name=HOSTILE, summary=HOSTILE, command=HOSTILE, systems=systems, trained=HOSTILE
    )
    page = Page(render(hostile, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not page.all("script")
    assert all("onerror" not in attributes for attributes in page.all("img"))
    assert all(HOSTILE in image["alt"] for image in page.all("img"))
    assert [text for tag, text in page.text if tag == "h1"] == [HOSTILE]
    assert next(text for tag, text in page.text if tag == "title").startswith(HOSTILE)


def test_is_the_same_every_time(report: Report, tmp_path: Path) -> None:
    first, second = (render(report, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_photos_of_noise_stay_below_two_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels, every = np.arange(600) // 6, Pairs(np.arange(600), np.arange(600))
    systems = [
        System(name, 4, False, evaluate(rng.standard_normal((600, 4)), labels, ["x"] * 600, every))
        for name in ("raw features", "trained")
    ]
    images = Images(labels, np.array(["test"] * 600), lambda row: rng.integers(0, 256, (3, 300, 200)).astype(np.uint8))
    path = render(Report(name="x", command="y", systems=systems, images=images, pictures=12), tmp_path / "report.html")
    assert len(Page(path.read_text(encoding="utf-8")).all("img")) == 36 * 11
    assert path.stat().st_size < 2_000_000


def test_one_system_alone_without_curves_or_exports(report: Report, tmp_path: Path) -> None:
    alone = Report(
        name="x", command="y", systems=report.systems[:1], images=replace(report.images, caption=lambda r: "")
    )
    page = Page(render(alone, tmp_path / "report.html").read_text())
    assert "over raw features" not in page.words
    assert "Where training helped most" not in page.words
    assert "Training" not in page.words
    assert page.all("img")[0]["alt"].startswith("Query: class ")


def test_queries_that_nobody_can_answer_make_a_page_too(tmp_path: Path) -> None:
    every = Pairs(np.arange(3), np.arange(3))
    result = evaluate(np.eye(3, dtype=np.float32), [0, 1, 2], ["a", "a", "b"], every)
    assert math.isnan(result.overall["mP@5"])
    images = Images(np.arange(3), np.array(["test"] * 3), lambda row: np.zeros((3, 8, 8), np.uint8))
    report = Report(name="x", command="y", systems=[System("trained", 3, False, result)], images=images)
    page = Page(render(report, tmp_path / "report.html").read_text())
    assert "mP@5 on 3 unseen classes \N{EN DASH}" in page.words
    assert not page.all("img")


def test_what_cannot_be_compared_is_refused(report: Report, tmp_path: Path) -> None:
    with pytest.raises(GuieError, match="one system at least"):
        render(replace(report, systems=[]), tmp_path / "report.html")
    with pytest.raises(GuieError, match=r"no metric 'mP@9'; they have mP@5, MRR@5, Recall@1"):
        render(replace(report, metric="mP@9"), tmp_path / "report.html")
    other = evaluate(
        np.eye(600, dtype=np.float32), report.images.labels, ["x"] * 600, Pairs(np.arange(9), np.arange(600))
    )
    systems = [report.systems[0], System("trained", 600, False, other)]
    with pytest.raises(GuieError, match="trained and raw features answer different queries"):
        render(replace(report, systems=systems), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_drawing_libraries_are_loaded_only_when_a_page_is_made() -> None:
    code = "import sys, guie_train.report.page; print(sorted({'matplotlib', 'jinja2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_says_where_training_made_it_worse(report: Report, tmp_path: Path) -> None:
    scores = {s.name: s.result.overall["mP@5"] for s in report.systems if s.augmented}
    low, *_, high = sorted(scores, key=scores.__getitem__)
    assert scores[low] < scores[high]
    assert replace(report, trained=high, baseline=low).worse == ""
    assert replace(report, trained=low, baseline="").worse == ""
    worse = replace(report, trained=low, baseline=high)
    text = (
        f"Training made it worse: mP@5 is {scores[low]:.3f}, and {scores[high]:.3f} with {high}. Most often there are"
    )
    assert worse.worse.startswith(text)
    assert text in Page(render(worse, tmp_path / "report.html").read_text(encoding="utf-8")).words


def test_says_what_an_exports_speed_leaves_out(page: Page) -> None:
    assert "model.onnx takes images that are resized and normalised already, which its speed leaves out." in page.words
    assert "saved_model.pt takes" not in page.words
    assert page.words.count("It has one view of an image") == 1
