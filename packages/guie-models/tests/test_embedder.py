from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from torch import Tensor, nn

from guie_core import UsageError
from guie_models.augmentation import SwitchedAugmentation
from guie_models.backbones import TimmBackbone
from guie_models.embedder import Embedder
from guie_models.heads import BatchNormLinear, Linear
from guie_models.views import RandomSquareCrop, Squash, size_values

SIZE = 96


def head_of(backbone: TimmBackbone) -> BatchNormLinear:
    """With running statistics of some features, as after training."""
    torch.manual_seed(0)
    head = BatchNormLinear(backbone.features, 16)
    for _ in range(20):
        head(torch.randn(32, backbone.features + 3) * 2 + 1)
    return head.eval()


def classifier_of(backbone: TimmBackbone) -> Linear:
    torch.manual_seed(3)
    return Linear(backbone.features, 11).eval()


def recipe(backbone: TimmBackbone, photos: list[Tensor]) -> tuple[Embedder, list[int]]:
    """An embedder whose classifier splits the photos, and the categories that it finds."""
    classifier = classifier_of(backbone)
    view = Squash(SIZE, backbone.mean, backbone.std)
    with torch.no_grad():
        outputs = torch.cat([classifier(backbone(view(photo)[None])) for photo in photos])
        classifier.linear.bias.sub_(outputs.mean(dim=0))  # so that no class wins everywhere
        categories = (outputs - outputs.mean(dim=0)).argmax(dim=1).tolist()
    common = [category for category, _ in Counter(categories).most_common()][::2]
    augmentation = SwitchedAugmentation(SIZE, backbone.mean, backbone.std, padded_for=common)
    return Embedder(backbone, head_of(backbone), view, augmentation, classifier), common


def by_formula(embedder: Embedder, padded_for: list[int], raw: Tensor) -> Tensor:
    """Point 10 of the recipe for one raw image [1, 3, H, W], with torchvision's functions."""
    backbone, head = embedder.backbone, embedder.head
    mean, std = list(backbone.mean), list(backbone.std)  # type: ignore[arg-type]
    image = raw[0].float()
    height, width = image.shape[1:]
    appended = torch.tensor([[height / width, height / SIZE, width / SIZE]])

    def resize(x: Tensor) -> Tensor:
        x = TF.resize(x, [SIZE, SIZE], TF.InterpolationMode.BICUBIC, antialias=True)
        out: Tensor = TF.normalize(x / 255, mean, std)[None]
        return out

    def concat(x: Tensor) -> Tensor:
        return torch.cat([x, appended], dim=1)

    if height == width:
        side = max(int(0.9 * height), 1)
        out = head(concat(backbone(resize(TF.center_crop(image, [side, side])))))
    else:
        features = backbone(resize(image))
        assert embedder.classifier is not None
        label = embedder.classifier(features).argmax().item()
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        padded = TF.pad(image, [left, top, side - width - left, side - height - top])
        crop = int(0.9 * side)
        outs = [head(concat(features)), head(concat(backbone(resize(TF.center_crop(padded, [crop, crop])))))]
        if label in padded_for:
            outs.append(head(concat(backbone(resize(padded)))))
        out = sum(outs) / len(outs)
    return F.normalize(out)


@torch.no_grad()
def test_forward_is_the_recipes_prediction(backbone: TimmBackbone, photos: list[Tensor]) -> None:
    embedder, padded_for = recipe(backbone, photos)
    for photo in photos:
        for image in (photo[None], photo[None].float()):
            found = embedder(image)
            assert found.shape == (1, 16)
            torch.testing.assert_close(found, by_formula(embedder, padded_for, image), atol=2e-5, rtol=0)


def test_the_photos_reach_every_branch(backbone: TimmBackbone, photos: list[Tensor]) -> None:
    embedder, _ = recipe(backbone, photos)
    calls = count_views(embedder, photos)
    assert min(calls.values()) >= 4
    assert calls["padded"] < calls["whole"]


def count_views(embedder: Embedder, photos: list[Tensor]) -> Counter[str]:
    calls: Counter[str] = Counter()
    hooks = [
        getattr(embedder.augmentation, name).register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name in SwitchedAugmentation.VIEWS
    ]
    embedder.embed(photos)
    for hook in hooks:
        hook.remove()
    return calls


def test_a_cpu_takes_few_images_at_once(backbone: TimmBackbone, photos: list[Tensor]) -> None:
    """A large batch takes it twice as long and more, since no layer's memory is used again by the next."""
    embedder, _ = recipe(backbone, photos)
    sizes: list[int] = []
    hook = embedder.backbone.register_forward_hook(lambda module, inputs, out: sizes.append(len(inputs[0])))
    many = photos * (-(-40 // len(photos)))
    embedder.embed(many)
    assert max(sizes) == 8
    sizes.clear()
    embedder.embed(many, batch_size=16)
    assert max(sizes) == 16
    hook.remove()


def test_each_view_is_run_once_and_only_where_it_is_needed(backbone: TimmBackbone, photos: list[Tensor]) -> None:
    embedder, padded_for = recipe(backbone, photos)
    expected: Counter[str] = Counter()
    with torch.no_grad():
        for photo in photos:
            height, width = photo.shape[1:]
            category = -1
            if height != width:
                assert embedder.classifier is not None
                category = int(embedder.classifier(backbone(embedder.view(photo)[None])).argmax())
            padded = ["padded"] if category in padded_for else []
            expected.update(["square"] if height == width else ["whole", "padded_crop", *padded])
    runs = []
    hook = backbone.register_forward_hook(lambda _, inputs, __: runs.append(len(inputs[0])))
    assert count_views(embedder, photos) == expected
    hook.remove()
    assert sum(runs) == expected.total()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@torch.no_grad()
def test_batches_equal_single_images(backbone: TimmBackbone, photos: list[Tensor], batch_size: int) -> None:
    embedder, _ = recipe(backbone, photos)
    view = embedder.view
    plain = Embedder(backbone, embedder.head, view)
    unsteered = Embedder(
        backbone, embedder.head, view, SwitchedAugmentation(SIZE, backbone.mean, backbone.std), embedder.classifier
    )
    headless = Embedder(backbone, Linear(backbone.features, 8), view)
    for model in (embedder, plain, unsteered, headless):
        single = torch.cat([model(photo[None]) for photo in photos])
        torch.testing.assert_close(model.embed(photos, batch_size=batch_size), single, atol=1e-5, rtol=0)
        torch.testing.assert_close(single.norm(dim=1), torch.ones(len(photos)))
    squares = [photo for photo in photos if photo.shape[1] == photo.shape[2]]
    single = torch.cat([embedder(photo[None]) for photo in squares])
    torch.testing.assert_close(embedder.embed(squares), single, atol=1e-5, rtol=0)
    assert embedder.embed([photo[None] for photo in photos]).shape == (len(photos), 16)
    assert embedder.embed([]).shape == (0, 16)


@torch.no_grad()
def test_preprocessed_images_skip_the_view(backbone: TimmBackbone, photos: list[Tensor]) -> None:
    embedder = Embedder(backbone, head_of(backbone), Squash(SIZE, backbone.mean, backbone.std))
    views = torch.stack([embedder.view(photo) for photo in photos])
    sizes = torch.stack([size_values(photo.shape[1], photo.shape[2], SIZE) for photo in photos])
    torch.testing.assert_close(embedder.embed_preprocessed(views, sizes), embedder.embed(photos), atol=1e-5, rtol=0)


@torch.no_grad()
def test_script_has_every_branch_and_no_noise(backbone: TimmBackbone, photos: list[Tensor]) -> None:
    full, _ = recipe(backbone, photos)
    plain = Embedder(backbone, full.head, full.view)
    unsteered = Embedder(backbone, full.head, full.view, SwitchedAugmentation(SIZE, backbone.mean, backbone.std))
    for embedder in (full, plain, unsteered):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scripted = embedder.script()
        for photo in photos:
            image = photo[None].float()
            torch.testing.assert_close(scripted(image), embedder(image), atol=1e-5, rtol=0)
        assert embedder.backbone is backbone


def test_it_deploys_in_evaluation_mode(backbone: TimmBackbone) -> None:
    head = BatchNormLinear(backbone.features, 4).train()
    embedder = Embedder(backbone, head, Squash(SIZE, backbone.mean, backbone.std))
    assert not head.training
    head.train()
    with pytest.raises(UsageError, match=r"training mode \(head\); call .eval\(\)"):
        embedder.script()


def test_parts_that_do_not_fit(backbone: TimmBackbone) -> None:
    view = Squash(SIZE, backbone.mean, backbone.std)
    head = Linear(64, 4)
    padded: dict[str, Any] = dict(mean=backbone.mean, std=backbone.std, padded_for=(1,))
    with pytest.raises(UsageError, match="The backbone gives 64 features; the head takes 65"):
        Embedder(backbone, Linear(65, 4), view)
    with pytest.raises(UsageError, match="The backbone gives 64 features; the classifier takes 3"):
        Embedder(backbone, head, view, classifier=Linear(3, 4))
    with pytest.raises(UsageError, match="classifier takes size values"):
        Embedder(backbone, head, view, classifier=Linear(64, 4, size_features=3))
    with pytest.raises(UsageError, match="without a classifier no category"):
        Embedder(backbone, head, view, SwitchedAugmentation(SIZE, **padded))
    with pytest.raises(UsageError, match="side is 96 px, the augmentation's 80 px"):
        Embedder(backbone, head, view, SwitchedAugmentation(80, **padded), Linear(64, 4))


def test_images_of_another_shape(backbone: TimmBackbone) -> None:
    embedder = Embedder(backbone, Linear(64, 4), Squash(SIZE, backbone.mean, backbone.std))
    shapes: list[tuple[int, ...]] = [(3, 8, 8), (2, 3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8)]
    for shape in shapes:
        with pytest.raises(UsageError, match=r"one RGB image of shape \[1, 3, height, width\]"):
            embedder(torch.zeros(shape))
    for shape in [(1, 8, 8), (8, 8), (2, 3, 8, 8)]:
        with pytest.raises(UsageError, match="one RGB image of shape"):
            embedder.embed([torch.zeros(shape)])


def test_images_that_are_no_tensors_and_batches_of_none(backbone: TimmBackbone, photos: list[Tensor]) -> None:
    embedder = Embedder(backbone, Linear(64, 4), Squash(SIZE, backbone.mean, backbone.std))
    array: Any = np.zeros((9, 9, 3), np.uint8)
    for call in (embedder, lambda image: embedder.embed([image])):
        with pytest.raises(UsageError, match=r"this image is a ndarray.*torch\.from_numpy"):
            call(array)
    for batch_size in (0, -1):
        with pytest.raises(UsageError, match=f"batch_size is {batch_size}"):
            embedder.embed(photos[:2], batch_size=batch_size)


def test_reduced_again(backbone: TimmBackbone, photos: list[Tensor]) -> None:
    embedder = Embedder(backbone, Linear(64, 4), Squash(SIZE, backbone.mean, backbone.std))
    once = embedder.reduced(torch.bfloat16)
    assert torch.equal(once.reduced(torch.bfloat16).embed(photos[:2]), once.embed(photos[:2]))
    again = once.reduced(torch.float32).embed(photos[:2])
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, embedder.embed(photos[:2]), atol=0.05, rtol=0)
    with pytest.raises(UsageError, match=r"can't compute in torch\.int8"):
        embedder.reduced(torch.int8)


def test_any_module_is_a_backbone_or_a_view(photos: list[Tensor]) -> None:
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
    embedder = Embedder(backbone, Linear(48, 8), RandomSquareCrop(32, (0.5,) * 3, (0.5,) * 3))  # type: ignore[arg-type]
    torch.testing.assert_close(embedder.embed(photos), torch.cat([embedder(photo[None]) for photo in photos]))
