"""What is wrong with weights, images, features, labels and batches is told, and nothing is left half done.

Files of the other kinds have their bad cases beside them: checkpoints, saved embedders, exports.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from guie_core import GuieError, UsageError, build
from guie_models.backbones import OpenClipBackbone, TimmBackbone
from guie_models.backbones.weights import load_matching, state_digest
from guie_models.embedder import Embedder
from guie_models.heads import PCA, BatchNormLinear, Linear
from guie_models.losses import ArcFace
from guie_models.views import CenterCrop, RandomSquareCrop, Squash

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NOT_READ = "could not be read as weights, it may be incomplete"


def vit(classes: int = 1000, **arguments: Any) -> dict[str, Tensor]:
    return dict(timm.create_model("test_vit", num_classes=classes, **arguments).state_dict())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def made(path: Path, how: str) -> Path:
    """A file of weights of timm's test_vit with something wrong."""
    if how == "truncated zip":
        torch.save(vit(), path)
        cut(path)
    elif how == "truncated, of the old form":
        torch.save(vit(), path, _use_new_zipfile_serialization=False)
        cut(path)
    elif how == "truncated safetensors":
        path = path.with_suffix(".safetensors")
        save_file(vit(), path)
        cut(path)
    elif how == "a page of an error":
        path.write_text("<html>Not found</html>")
    elif how == "a Python object":
        torch.save(vit() | {"config": Path("x")}, path)
    elif how == "empty":
        path.touch()
    elif how == "a list":
        torch.save(list(vit().values()), path)
    elif how == "a tensor":
        torch.save(torch.zeros(3), path)
    elif how == "no numbers":
        torch.save({name: value.to("meta") for name, value in vit().items()}, path)
    elif how == "whole numbers":
        torch.save({name: value.to(torch.int8) for name, value in vit().items()}, path)
    elif how == "another architecture":
        torch.save(timm.create_model("test_resnet").state_dict(), path)
    elif how == "another width":
        torch.save(vit(embed_dim=32), path)
    elif how == "one tensor less":
        torch.save({name: value for name, value in vit().items() if name != "blocks.5.mlp.fc2.bias"}, path)
    elif how == "one tensor more":
        torch.save(vit() | {"blocks.6.norm1.weight": torch.ones(64)}, path)
    return path


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"the weights .*w\.pth are not a file\. Correct weights='file:.*w\.pth'\."),
        ("truncated zip", NOT_READ),
        ("truncated, of the old form", NOT_READ),
        ("truncated safetensors", NOT_READ),
        (
            "a page of an error",
            r"w\.pth is not a file of tensors, or holds Python objects besides, which are never unpickled: Unsupported"
            r" operand 60\nSave its tensors alone: torch\.save\(model\.state_dict\(\), path\), or as safetensors\.$",
        ),
        (
            "a Python object",
            r"never unpickled: Unsupported global: GLOBAL pathlib\.PosixPath was not an allowed global by default\n",
        ),
        ("empty", rf"w\.pth \(0 bytes\) {NOT_READ}"),
        ("a list", r"w\.pth holds a list; weights are tensors by their names\."),
        ("a tensor", r"w\.pth holds a Tensor; weights are tensors by their names\."),
        ("no numbers", r"w\.pth holds shapes without numbers \(cls_token, of the device 'meta'\)\."),
        ("whole numbers", r"Not of these types: cls_token holds int8, wanted float32; .* and \d+ more"),
        (
            "another architecture",
            r"these weights belong to another architecture \(92 tensors, wanted 80\)\.\n"
            r"  Missing: cls_token; .* and 74 more\n  Not wanted: conv1\.0\.weight; .* and 88 more$",
        ),
        ("another width", r"Other shapes: cls_token is \[1, 1, 32\], wanted \[1, 1, 64\]; .* and \d+ more$"),
        ("one tensor less", r"\(79 tensors, wanted 80\)\.\n  Missing: blocks\.5\.mlp\.fc2\.bias$"),
        ("one tensor more", r"\(81 tensors, wanted 80\)\.\n  Not wanted: blocks\.6\.norm1\.weight$"),
    ],
)
def test_wrong_weights(how: str, message: str, tmp_path: Path) -> None:
    path = made(tmp_path / "w.pth", how)
    with pytest.raises(GuieError, match=message) as caught:
        TimmBackbone("test_vit", weights=f"file:{path}")
    assert str(caught.value).startswith("timm/test_vit")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("how", ["missing", "truncated zip", "truncated safetensors", "a list", "another architecture"])
def test_wrong_weights_of_open_clip(how: str, tmp_path: Path) -> None:
    path = made(tmp_path / "w.pth", how)
    with pytest.raises(GuieError, match=r"^open_clip/RN50(.|\n)*" + re.escape(str(path))):
        OpenClipBackbone("RN50", weights=f"file:{path}")


@pytest.mark.parametrize("named", [True, False])
def test_another_number_of_classes_is_no_matter_to_a_backbone(named: bool, tmp_path: Path) -> None:
    state = vit(classes=7)
    torch.save(state if named else {str(i): value for i, value in enumerate(state.values())}, tmp_path / "w.pth")
    network = TimmBackbone("test_vit", weights=f"file:{tmp_path / 'w.pth'}").network
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("wrong", ["Missing", "Not wanted", "Other shapes", "Not of these types"])
def test_nothing_is_half_loaded(wrong: str) -> None:
    loss = ArcFace(4, 10)
    model = nn.Sequential(nn.Linear(6, 4), loss)
    before = state_digest(model.state_dict(), "")
    state = {name: value + 1 for name, value in model.state_dict().items()}
    last = list(state)[-1]
    if wrong == "Missing":
        del state[last]
    elif wrong == "Not wanted":
        state["2.weight"] = torch.zeros(1)
    else:
        state[last] = torch.zeros(12, 4) if wrong == "Other shapes" else state[last].long()
    with pytest.raises(GuieError, match=wrong):
        load_matching(model, state, (), "here")
    assert state_digest(model.state_dict(), "") == before


def test_class_centres_of_another_number_of_classes() -> None:
    with pytest.raises(GuieError, match=r"Other shapes: centres is \[12, 4\], wanted \[10, 4\]$"):
        load_matching(ArcFace(4, 10), ArcFace(4, 12).state_dict(), (), "here")


@pytest.mark.parametrize("view", [Squash, CenterCrop, RandomSquareCrop])
def test_greyscale_images_are_expanded_first(view: type[Any]) -> None:
    image = torch.randint(0, 256, (40, 30), dtype=torch.uint8)
    made_view = view(16, MEAN, STD)
    for grey in (image, image[None]):
        with pytest.raises(UsageError, match=r"A greyscale one is expanded: image\.expand\(3, -1, -1\)\.$"):
            made_view(grey)
    assert made_view(image.expand(3, -1, -1)).shape == (3, 16, 16)
    assert made_view(image[None].expand(3, -1, -1)).isfinite().all()


def test_backbones_say_what_they_take(backbone: TimmBackbone) -> None:
    for shape, message in {
        (
            0,
            3,
            96,
            96,
        ): r"timm/test_vit takes images of shape \[B, 3, h, w\], one at least; these are \[0, 3, 96, 96\]\.$",
        (3, 96, 96): r"these are \[3, 96, 96\]\.$",
        (2, 1, 96, 96): r"these are \[2, 1, 96, 96\]\. Greyscale ones are expanded: images\.expand\(-1, 3, -1, -1\)\.$",
    }.items():
        with pytest.raises(UsageError, match=message):
            backbone(torch.zeros(shape))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (20, 1000), (1000, 20)])
def test_one_pixel_and_one_to_fifty(
    height: int, width: int, backbone: TimmBackbone, photo: Callable[..., Tensor]
) -> None:
    image = photo(min(height, 400), min(width, 600))
    image = image.repeat(1, -(-height // image.shape[1]), -(-width // image.shape[2]))[:, :height, :width]
    for view in (Squash(96, MEAN, STD), CenterCrop(96, MEAN, STD)):
        embedder = Embedder(backbone, BatchNormLinear(64, 8), view)
        out = embedder(image[None])
        assert out.isfinite().all()
        torch.testing.assert_close(out.norm(), torch.tensor(1.0))
        torch.testing.assert_close(embedder.embed([image]), out)


def test_no_images(backbone: TimmBackbone) -> None:
    embedder = Embedder(backbone, Linear(64, 8), Squash(96, MEAN, STD))
    assert embedder.embed([]).shape == (0, 8)


HEADS = ("BatchNormLinear", "LinearBatchNormPReLU", "MLP")


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("rows", [0, 1])
def test_batch_statistics_need_two_images(name: str, rows: int) -> None:
    head = build("heads", {"type": name}, in_features=6, out_features=4, size_features=0)
    before = state_digest(head.state_dict(), "")
    with pytest.raises(UsageError) as caught:
        head.train()(torch.randn(rows, 6))
    assert str(caught.value) == (
        f"{name} can't train on a batch of {rows}: batch statistics need two images at least. Drop the last incomplete"
        " batch, or call .eval() to use the running statistics."
    )
    assert state_digest(head.state_dict(), "") == before
    assert head.eval()(torch.randn(rows, 6)).shape == (rows, 4)


@pytest.mark.parametrize("name", ["ArcFace", "CosFace", "NormFace", "AdaFace", "ElasticFace", "CurricularFace"])
def test_labels_and_batches_that_no_loss_takes(name: str) -> None:
    loss = build("losses", {"type": name}, embedding_size=4, classes=10)
    before = state_digest(loss.state_dict(), "")
    for labels in ([0, 10], [-1, 3]):
        with pytest.raises(GuieError) as caught:
            loss(torch.randn(2, 4), torch.tensor(labels))
        assert str(caught.value) == (
            f"{name} has 10 classes, labels 0..9; this batch has labels from {min(labels)} to {max(labels)}. Labels are"
            " encoded 0..C-1 over the training rows, and `classes` is their number."
        )
    with pytest.raises(UsageError, match=f"^{name} got an empty batch: the mean of no losses doesn't exist.$"):
        loss(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    with pytest.raises(UsageError, match=re.escape(f"{name} takes embeddings of shape [B, 4]; these are [2, 5].")):
        loss(torch.zeros(2, 5), torch.zeros(2, dtype=torch.long))
    assert state_digest(loss.state_dict(), "") == before, "what was refused has changed its state"


def test_features_that_are_not_finite() -> None:
    """A head and a loss let them show; what is fitted refuses them."""
    features = torch.randn(8, 6)
    features[3, 2] = float("nan")
    head, loss = BatchNormLinear(6, 4, size_features=0), ArcFace(4, 5)
    assert loss(head(features), torch.arange(8) % 5).isnan()
    with pytest.raises(GuieError, match="the features hold values that are not finite"):
        PCA.fit(features, 2)
