"""`guie submit`: the contest's zip built, checked in a process without guie, and scored by the host's rule."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from guie_core.cli import guie, run_command
from guie_core.profiles import H100_80G, V100_32G
from guie_datasets import decode
from guie_emoji import Emoji
from guie_models import BatchNormLinear, Embedder, Safetensors, Squash, TimmBackbone, TorchScript
from guie_train.prediction import host, models, outputs, submission
from guie_train.prediction.scoring import Solution, read_solution, score
from guie_train.prediction.submission import Check, pictures

torch.set_num_threads(1)  # tests run beside each other
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")

Run = Callable[..., str]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/script and runs/tensors: what runs leave that export TorchScript, and safetensors."""
    folder = tmp_path_factory.mktemp("submit") / "runs"
    torch.manual_seed(0)
    backbone = TimmBackbone("test_resnet", weights="none", image_size=32)
    embedder = Embedder(backbone, BatchNormLinear(backbone.features, 16), Squash(32, backbone.mean, backbone.std))
    images = [torch.from_numpy(image) for image in pictures().values()]
    for name, exporter in {"script": TorchScript(), "tensors": Safetensors()}.items():
        exporter.export(embedder, folder / name / "stages" / "export", images)
        (folder / name / "run.json").write_text("{}")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run("build", ..., code=0): what `guie submit` prints, on stdout or on stderr."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str | Path, code: int = 0) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command(guie, "guie", ["submit", *map(str, arguments), "--profile", "cpu"])
        out, errors = capsys.readouterr()
        assert ended.value.code == code, (out, errors)
        assert "Traceback" not in errors
        assert "This is a fault" not in errors
        return " ".join((out + errors).split())

    return command


def test_a_run_with_torchscript_is_packed_as_it_is(runs: Path, run: Run, tmp_path: Path) -> None:
    out = run("build", runs / "script")
    assert "submission.zip: nothing failed." in out
    assert "FAILED" not in out
    with zipfile.ZipFile("submission.zip") as archive:
        assert archive.namelist() == ["saved_model.pt"]
        packed = archive.read("saved_model.pt")
    assert packed == (runs / "script" / "stages" / "export" / "saved_model.pt").read_bytes()
    assert "submission.zip is there already; add --force" in run("build", runs / "script", code=2)
    run("build", runs / "script" / "stages" / "export" / "saved_model.pt", "-o", "again.zip")
    digests = {hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in ("submission.zip", "again.zip")}
    assert len(digests) == 1


def test_an_embedder_goes_through_the_exporter(runs: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_command(guie, "guie", ["submit", "build", str(runs / "tensors"), "-o", "s.zip", "--profile", "cpu"])
    _, *checks, last = capsys.readouterr().out.splitlines()
    assert last == "s.zip: nothing failed."
    assert all(line.split()[0] in ("ok", "note") for line in checks)  # no terminal: each check is a line
    assert any("loads" in line and "which is not tried here" in line for line in checks)
    with zipfile.ZipFile("s.zip") as archive:
        archive.extractall()
    image = torch.randint(0, 256, (1, 3, 50, 20)).float()
    scripts = [torch.jit.load(path) for path in ("saved_model.pt", runs / "script/stages/export/saved_model.pt")]
    with torch.no_grad():
        torch.testing.assert_close(scripts[0](image), scripts[1](image), atol=1e-6, rtol=0)
    Path("m.onnx").write_bytes(b"")
    assert "TorchScript, which can't be made from ONNX" in run("build", "m.onnx", "-o", "t.zip", code=2)
    assert "m.txt: not a model that can be used here" in run("build", Path("m.onnx").rename("m.txt"), code=2)
    assert "a submission is a .zip" in run("build", runs / "tensors", "-o", "t.pt", code=2)


class Bad(nn.Module):
    """65 dimensions."""

    def forward(self, image: Tensor) -> Tensor:
        return image.mean(dim=(2, 3)).repeat(1, 22)[:, :65] + 1.0


class Fragile(nn.Module):
    """No image of one row or column."""

    def forward(self, image: Tensor) -> Tensor:
        if min(image.shape[2], image.shape[3]) < 2:
            raise RuntimeError("too small")
        return image.mean(dim=(2, 3))


class Fickle(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean(dim=(2, 3)) + torch.rand(1)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Bad(), "FAILED D is at most 64 65"),
        (Fragile(), "FAILED any image [1, 3, H, W] gives [1, D] one pixel: builtins.RuntimeError: too small; 1 x 300"),
        (Fickle(), "FAILED gives the same twice the second run differs"),
    ],
)
def test_what_fails_is_told(run: Run, module: nn.Module, message: str) -> None:
    torch.jit.save(torch.jit.script(module), "saved_model.pt")
    out = run("build", "saved_model.pt", "-o", "s.zip", code=1)
    assert message in out
    assert "s.zip: 1 check failed." in out
    assert message in run("check", "s.zip", code=1)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"model.pt": b""}, "FAILED holds saved_model.pt alone it holds model.pt"),
        ({"saved_model.pt": b"", "notes.txt": b""}, "it holds saved_model.pt, notes.txt"),
        ({"saved_model/saved_model.pb": b"", "saved_model/variables": b""}, "a TensorFlow SavedModel"),
        ({"saved_model.pt": b"no model"}, "FAILED loads without guie, by torch"),
        (None, "not a zip, or a damaged one"),
    ],
)
def test_zips_that_are_none(run: Run, members: dict[str, bytes] | None, message: str) -> None:
    if members is None:
        Path("s.zip").write_bytes(b"PK nothing")
    else:
        with zipfile.ZipFile("s.zip", "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    assert message in run("check", "s.zip", code=1)


def test_no_zip(run: Run) -> None:
    assert "none.zip: no such file. `guie submit build MODEL` makes one" in run("check", "none.zip", code=2)


def test_the_host_has_no_guie() -> None:
    for name in ("guie_models", "guie_core.errors", "timm", "open_clip", "torchvision.ops"):
        with pytest.raises(ImportError):
            host.Refuse().find_spec(name)
    assert host.Refuse().find_spec("numpy") is None


def result(*values: float) -> dict[str, Any]:
    return {"shape": [1, len(values)], "values": list(values)}


def judged(images: dict[str, Any], again: dict[str, Any] | None = None, uint8: Any = None) -> dict[str, Check]:
    found = {"images": images, "again": again or images, "uint8": uint8 or next(iter(images.values()))}
    shapes = {name: np.zeros((3, 8, 9), np.uint8) for name in images}
    return {check.what: check for check in submission._check_embeddings(found, shapes)}


def test_judgements() -> None:
    good = judged({"timed": result(0.6, 0.8), "b": result(1.0, 0.0)})
    assert {check.verdict for check in good.values()} == {"ok"}
    assert judged({"timed": result(3.0, 4.0), "b": result(1.0, 0.0)})["L2 norm"] == Check(
        "note", "L2 norm", "1 to 5: allowed, and distances depend on it"
    )
    assert judged({"timed": result(0.0, 0.0), "b": result(1.0, 0.0)})["L2 norm"].verdict == "FAILED"
    equal = judged({"timed": result(1.0, 0.0), "b": result(1.0, 0.0)})
    assert equal["tells images apart"].verdict == "FAILED"
    wrong = judged({"timed": result(1.0, 0.0), "b": result(float("nan"), 0.0)})
    assert wrong["values are finite"] == Check("FAILED", "values are finite", "not of b")
    several = judged({"timed": result(1.0, 0.0), "b": result(1.0)})
    assert several["D is at most 64"] == Check("FAILED", "D is at most 64", "1, 2")
    flat = judged({"timed": {"shape": [2], "values": [1.0, 0.0]}, "b": result(1.0, 0.0)})
    assert "landscape 8 x 9: gives [2]" in flat["any image [1, 3, H, W] gives [1, D]"].finding
    floats = judged({"timed": result(0.6, 0.8), "b": result(1.0, 0.0)}, uint8={"error": "expected Float"})
    assert floats["takes uint8 as well"].verdict == "note"
    other = judged({"timed": result(0.6, 0.8), "b": result(1.0, 0.0)}, uint8=result(0.8, 0.6))
    assert "differ by 2.0e-01" in other["takes uint8 as well"].finding


def test_the_time_is_judged_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from guie_core.profiles import CPU

    slow = {"seconds": [0.2, 0.3, 0.4], "device": "cpu", "threads": 2}
    check = submission._check_time(slow, CPU)
    assert check.verdict == "note"
    assert (
        check.finding == "300 ms, the median of 3 images of 480 x 640 on this CPU, 2 threads; not judged without a GPU"
    )
    assert submission._check_time(slow | {"seconds": [0.1]}, CPU).verdict == "ok"
    elsewhere = submission._check_time(slow | {"seconds": [0.1]}, V100_32G)
    assert elsewhere.verdict == "note"
    assert "v100-32g is not here, and nothing is known of it" in elsewhere.finding

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    there = slow | {"device": "cuda"}
    assert submission._check_time(there, V100_32G).verdict == "FAILED"
    assert submission._check_time(there | {"seconds": [0.1]}, V100_32G).verdict == "ok"
    other = submission._check_time(there, H100_80G)
    assert other.verdict == "note"
    assert "it is not the GPU of h100-80g" in other.finding


# the score


def host_score(
    vectors: dict[str, np.ndarray[Any, Any]], index: list[str], answers: dict[str, set[str]]
) -> dict[str, float]:
    """mP@5 a query, in plain loops."""
    found = {}
    for query, right in answers.items():
        if query not in vectors:
            found[query] = 0.0
            continue
        distances = sorted(
            (float(np.sqrt(((vectors[query].astype(float) - vectors[one].astype(float)) ** 2).sum())), one)
            for one in index
            if one != query
        )
        ranks = min(len(right), 5)
        found[query] = sum(one in right for _, one in distances[:ranks]) / ranks
    return found


def stored(path: Path, vectors: dict[str, np.ndarray[Any, Any]], folder: Path) -> None:
    """A file of embeddings as guie predict writes it."""
    dimension = len(next(iter(vectors.values())))
    columns: dict[str, Any] = {
        "path": [str(folder / f"{name}.jpg") for name in vectors],
        "offset": [0] * len(vectors),
        "length": [-1] * len(vectors),
        "hash": [bytes(16)] * len(vectors),
        "label": [None] * len(vectors),
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(np.concatenate(list(vectors.values())).astype(np.float32)), dimension
        ),
    }
    blanks = {name: [""] * len(vectors) for name in outputs.COLUMNS.names if name not in columns}
    table = pa.table({**columns, **blanks}).select([*outputs.COLUMNS.names, "embedding"])
    outputs.write(path, lambda: iter([table]), len(vectors), dimension, {"model": {}})


@pytest.mark.parametrize("seed", range(4))
def test_the_score_is_the_hosts(tmp_path: Path, seed: int) -> None:
    """Against plain loops: classes of 1 to 9, ties, distractors, queries without an image."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 40, 300)
    # few distinct places, so that many are equally far
    places = random.integers(0, 3, (40, 4)).astype(np.float32)[labels] + random.integers(0, 2, (300, 4))
    names = [f"{random.integers(1 << 62):016x}" for _ in labels]
    vectors = {name: place for name, place in zip(names, places, strict=True)}
    queries, index = names[:60], names[60:280]  # the rest are distractors
    by_label: dict[int, set[str]] = {}
    for name, label in zip(index, labels[60:280], strict=True):
        by_label.setdefault(int(label), set()).add(name)
    answers = {name: by_label[int(label)] for name, label in zip(queries, labels, strict=False) if label in by_label}
    gone = list(answers)[3]
    lines = ["id,images,Usage"]
    usage = {}
    for number, (query, right) in enumerate(answers.items()):
        usage[query] = "Public" if number % 3 else "Private"
        lines.append(f"{query},{' '.join(sorted(right))},{usage[query]}")
    lines.append("ffff,None,Ignored")
    (tmp_path / "solution.csv").write_text("\n".join(lines) + "\n")
    there = {
        name: place for name, place in vectors.items() if name != gone and (name in answers or name not in queries)
    }
    stored(tmp_path / "e.parquet", there, tmp_path / "images")
    found = score(read_solution(tmp_path / "solution.csv"), tmp_path / "e.parquet", tmp_path / "images")
    expected = host_score(there, [name for name in there if name not in answers], answers)
    assert expected[gone] == 0
    assert found.missing_queries == [gone]
    assert len(found.matched.index) == len(there) - len(answers) + 1
    assert 0.1 < found.parts["all"][1] < 0.9
    for part, (count, value) in found.parts.items():
        chosen = [expected[query] for query in answers if part in ("all", usage[query])]
        assert count == len(chosen)
        assert value == pytest.approx(np.mean(chosen), abs=1e-12)
    assert list(found.parts) == ["Private", "Public", "all"]


def test_only_the_first_ranks_count_and_a_query_does_not_find_itself(tmp_path: Path) -> None:
    """Worked by hand: a b c d at 0 1 2 3 on a line; a and c belong together, b and d; all are queries and index."""
    vectors = {name: np.array([float(place)]) for place, name in enumerate("abcd")}
    stored(tmp_path / "e.parquet", vectors, tmp_path)
    text = "id,label,usage\na,1,query index\nb,2,index query\nc,1,query index\nd,2,query index\n"
    (tmp_path / "labels.csv").write_text(text)
    found = score(read_solution(tmp_path / "labels.csv"), tmp_path / "e.parquet", tmp_path)
    # the nearest other: a -> b, b -> a (a tie with c), c -> b (a tie with d), d -> c: none is right
    assert found.parts == {"all": (4, 0.0)}
    moved = vectors | {"c": np.array([0.5])}
    stored(tmp_path / "e.parquet", moved, tmp_path)
    # a -> c, right; b -> c; c -> a (a tie with b, and a comes first), right; d -> b, right
    assert score(read_solution(tmp_path / "labels.csv"), tmp_path / "e.parquet", tmp_path).parts == {"all": (4, 0.75)}


def test_the_index_may_have_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    paths = ["index/a", "index/b", "query/a", "query/q"]
    vectors = {"index/a": 0.0, "index/b": 5.0, "query/a": 4.0, "query/q": 1.0}
    stored(tmp_path / "e.parquet", {path: np.array([vectors[path]]) for path in paths}, tmp_path)
    found = score(
        Solution({"a": frozenset("b"), "q": frozenset("a")}, {"a": "", "q": ""}), tmp_path / "e.parquet", tmp_path
    )
    assert len(found.matched.index) == 2
    assert found.parts == {"all": (2, 1.0)}  # q finds index/a; query/a finds b, itself masked
    half = score(Solution({"q": frozenset(("a", "zz"))}, {"q": ""}), tmp_path / "e.parquet", tmp_path)
    assert half.parts == {"all": (1, 0.5)}  # zz has no image, and still is one of two that are right
    assert half.matched.missing_answers == ["zz"]
    # what a solution of labels calls the index is the index, wherever it lies
    (tmp_path / "labels.csv").write_text("id,label,usage\na,1,query index\nq,1,index query\nb,2,index\n")
    found = score(read_solution(tmp_path / "labels.csv"), tmp_path / "e.parquet", tmp_path)
    assert len(found.matched.index) == 3
    assert found.matched.missing_answers == []
    # query/a at 4: b at 5 comes before q at 1; q: index/a at 0 comes first
    assert found.parts == {"all": (2, 0.5)}


def test_from_images_to_a_score(runs: Path, run: Run, tmp_path: Path) -> None:
    """The command, and plain loops over what TorchScript itself gives for the images."""
    (tmp_path / "images" / "deep").mkdir(parents=True)
    names: dict[str, list[str]] = {}
    for row in Emoji().rows():
        if row.label < 8:
            name = f"{row.name}-{len(names.setdefault(row.name, []))}"
            names[row.name].append(name)
            folder = tmp_path / "images" / ("deep" if len(names[row.name]) % 2 else "")
            Image.fromarray(decode(row.image.read()).transpose(1, 2, 0)).save(folder / f"{name}.png")
    answers = {same[0]: set(same[1:]) for same in names.values()}
    rows = [
        f"{query},{' '.join(right)},{'Public' if n % 2 else 'Private'}"
        for n, (query, right) in enumerate(answers.items())
    ]
    (tmp_path / "solution.csv").write_text("\n".join(["id,images,Usage", *rows]))
    run("build", runs / "script")
    out = run("score", "submission.zip", "solution.csv", "--images", "images")
    script = torch.jit.load(runs / "script/stages/export/saved_model.pt")
    vectors = {}
    for path in (tmp_path / "images").rglob("*.png"):
        pixels = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            vectors[path.stem] = script(pixels)[0].numpy()
    expected = host_score(vectors, [name for name in vectors if name not in answers], answers)
    assert f"among {len(vectors) - 8} index images" in out
    assert f"all 8 queries {np.mean(list(expected.values())):.4f}" in out
    assert "Public 4 queries" in out
    # kept, and used again
    about = json.loads(pq.read_schema("submission.embeddings.parquet").metadata[b"guie.predictions"])
    assert about["options"]["normalise"] is False
    before = Path("submission.embeddings.parquet").stat().st_mtime_ns
    assert run("score", "submission.zip", "solution.csv", "--images", "images") == out.partition(" predict: ")[0]
    assert Path("submission.embeddings.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,images,Usage\nq,,Public\n", "line 2: no image is right for query q"),
        ("id,images,Usage\nq,q,Public\n", "line 2: no image is right for query q"),
        ("id,images,Usage\nq,a,Public\nq,b,Public\n", "line 3: query q is there twice"),
        ("id,images,Usage\nq,a\n", "line 2: 2 values where there are 3 columns"),
        ("id,images\nq,a\n", "its columns are id, images. A solution has three"),
        ("id,images,Usage\n", "there is no query in it"),
        ("id,label,usage\nq,1,asks\n", "line 2: usage is 'asks'; it is query, index, or both"),
        ("id,label,usage\nq,1,query\na,2,index\n", "no image is right for query q"),
        ("id,images,Usage\nq,a,Public\n", "no query of the solution, such as q"),
        ("q,a,Public\nr,b,Private\n", "line 1: q, a, Public is no header but a query"),
        ("q,a,\nr,b,\n", "line 1: q, a, is no header"),
        ("id,images,Usage\nother,a b,Pubic\n", "line 2: usage is 'Pubic'; it is Public, Private, Ignored, or nothing."),
        ("query,part,right\nother,Public,a b\n", "usage is 'a b'; it is Public, Private, Ignored, or nothing."),
        (
            'id,images,Usage\nother,"a,b",Public\n',
            "such as a,b for query other; an image's id is its name without the suffix, and ids have spaces between",
        ),
        ("id;images;Usage\nq;a;Public\n", "its columns seem to be separated by ';'; a solution's are by commas"),
        ("", "it is empty. A solution begins with a header"),
        ("id,label,usage\na,,index\nb,1,index\nq,,query\n", "line 4: query q has no label"),
        ("id,label,usage\na,-1,query index\n", "line 2: query a has no label"),
        ("id,label,usage\na,1,index\na,2,index\nq,1,query\n", "line 3: index image a is there twice"),
        (None, "solution.csv: no such file"),
    ],
)
def test_solutions_that_are_none(runs: Path, run: Run, tmp_path: Path, text: str | None, message: str) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "other.png")
    if text is not None:
        (tmp_path / "solution.csv").write_text(text)
    with zipfile.ZipFile("submission.zip", "w") as archive:
        archive.write(runs / "script/stages/export/saved_model.pt", "saved_model.pt")
    code = 2 if text is None else 1
    assert message in run("score", "submission.zip", "solution.csv", "--images", "images", code=code)


def test_65_dimensions_and_two_images_of_one_id_have_no_score(tmp_path: Path) -> None:
    solution = Solution({"a": frozenset("b")}, {"a": ""})
    stored(tmp_path / "e.parquet", {name: np.ones(65) for name in "ab"}, tmp_path)
    with pytest.raises(Exception, match="65 dimensions; the contest takes 64 at most"):
        score(solution, tmp_path / "e.parquet", tmp_path)
    stored(tmp_path / "e.parquet", {name: np.ones(2) for name in ("a", "b", "x/b")}, tmp_path)
    with pytest.raises(Exception, match="two images have the id b"):
        score(solution, tmp_path / "e.parquet", tmp_path)


def test_columns_of_the_hosts_words_may_stand_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("ID,Usage,images\nq,public,a b\nr,Private,b\nx,Ignored,None\n")
    found = read_solution(tmp_path / "s.csv")
    assert found.answers == {"q": {"a", "b"}, "r": {"b"}}
    assert found.usage == {"q": "Public", "r": "Private"}
    assert found.ignored == 1


def test_an_index_image_of_which_nothing_is_known_is_right_for_no_query(tmp_path: Path) -> None:
    """q at 0; u and v, unknown, nearer than a, the only other of q's class."""
    stored(tmp_path / "e.parquet", {name: np.array([float(at)]) for at, name in enumerate("quva")}, tmp_path)
    (tmp_path / "s.csv").write_text("id,label,usage\nq,7,query\nu,,index\nv,-1,index\na,7,index\n")
    found = score(read_solution(tmp_path / "s.csv"), tmp_path / "e.parquet", tmp_path)
    assert len(found.matched.index) == 3
    assert found.parts == {"all": (1, 0.0)}


def test_a_solution_is_looked_at_before_any_image_is(
    runs: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    for name in ("q", "a"):
        Image.new("RGB", (9, 9)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "solution.csv").write_text("id,images,Usage\nq,a.png,Public\n")
    (tmp_path / "one.csv").write_text("id,images,Usage\nq,a b,Public\np,a,\n")
    with zipfile.ZipFile("submission.zip", "w") as archive:
        archive.write(runs / "script/stages/export/saved_model.pt", "saved_model.pt")
    with monkeypatch.context() as patch:
        patch.setattr(models.ModelFile, "open", None)
        message = run("score", "submission.zip", "solution.csv", "--images", "images", code=1)
    assert "none of the images that the solution calls right, such as a.png for query q" in message
    out = run("score", "submission.zip", "one.csv", "--images", "images")
    assert "Public 1 query 0.5000 all 2 queries 0.2500" in out
    assert "Without an image, and so 0: 1 query, such as p" in out
    assert "Not in images, and so not found: 1 right image, such as b" in out
