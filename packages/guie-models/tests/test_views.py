from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor

from guie_core import UsageError
from guie_models import _quiet, views
from guie_models.views import CenterCrop, RandomSquareCrop, Squash, size_values

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


ROUNDING = {True: 5e-5, False: 1.5e-3}
"""By antialias. Without it torch keeps places between pixels in float32: 1.1e-3 from itself in float64."""


def normalised(pixels: Tensor) -> Tensor:
    out: Tensor = TF.normalize(pixels / 255, list(MEAN), list(STD))
    return out


def by_torchvision(image: Tensor, size: int, *, pad: bool, crop: float) -> Tensor:
    """The recipe's formula (point 10) with torchvision's functions."""
    height, width = image.shape[1:]
    if pad:
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        image = TF.pad(image, [left, top, side - width - left, side - height - top])
    if crop < 1:
        height, width = image.shape[1:]
        image = TF.center_crop(image, [max(int(crop * height), 1), max(int(crop * width), 1)])
    return normalised(TF.resize(image.float(), [size, size], TF.InterpolationMode.BICUBIC, antialias=True))


def by_pillow(image: Tensor, size: int, filter_: Image.Resampling) -> Tensor:
    """Pillow's float resampling, a channel at a time."""
    channels = [
        np.asarray(Image.fromarray(channel.numpy().astype(np.float32), mode="F").resize((size, size), filter_))
        for channel in image
    ]
    return normalised(torch.from_numpy(np.stack(channels)))


def bilinear_by_hand(image: Tensor, size: int) -> Tensor:
    """Bilinear without antialias, half-pixel centres, edges repeated: the definition, in float64."""

    def positions(length: int) -> tuple[Tensor, Tensor, Tensor]:
        at = ((torch.arange(size, dtype=torch.float64) + 0.5) * length / size - 0.5).clamp(min=0)
        low = at.floor().long().clamp(max=length - 1)
        return low, (low + 1).clamp(max=length - 1), at - low

    x = image.double()
    low, high, weight = positions(image.shape[1])
    x = x[:, low] * (1 - weight)[:, None] + x[:, high] * weight[:, None]
    low, high, weight = positions(image.shape[2])
    x = x[:, :, low] * (1 - weight) + x[:, :, high] * weight
    return normalised(x)


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("crop", [1.0, 0.9, 0.5])
def test_squash_is_torchvisions_arithmetic(photos: list[Tensor], pad: bool, crop: float) -> None:
    view = Squash(64, MEAN, STD, pad_to_square=pad, center_crop=crop)
    for image in photos:
        out = view(image)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, by_torchvision(image, 64, pad=pad, crop=crop), atol=2e-5, rtol=0)


def test_squash_is_pillows_bicubic(photos: list[Tensor]) -> None:
    view = Squash(96, MEAN, STD)
    for image in photos:
        torch.testing.assert_close(view(image), by_pillow(image, 96, Image.Resampling.BICUBIC), atol=2e-4, rtol=0)


def test_bilinear_without_antialias_is_its_definition(photos: list[Tensor]) -> None:
    view = Squash(40, MEAN, STD, interpolation="bilinear", antialias=False)
    for image in photos:
        torch.testing.assert_close(view(image).double(), bilinear_by_hand(image, 40), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(5, 2), (2, 5), (4, 7)])
def test_the_remainder_of_the_padding_is_at_the_bottom_or_right(height: int, width: int) -> None:
    side = max(height, width)
    view = Squash(side, (0, 0, 0), (1, 1, 1), pad_to_square=True)
    out = view(torch.full((3, height, width), 255, dtype=torch.uint8))
    rows, columns = out[0].any(dim=1).nonzero()[:, 0], out[0].any(dim=0).nonzero()[:, 0]
    assert rows.tolist() == list(range((side - height) // 2, (side - height) // 2 + height))
    assert columns.tolist() == list(range((side - width) // 2, (side - width) // 2 + width))


@pytest.mark.parametrize("side", range(1, 60))
def test_centre_crop_starts_at_the_recipes_pixel(side: int) -> None:
    """Every pixel holds its own number, so that the crop shows where it came from."""
    numbers = torch.arange(side * side, dtype=torch.float32).reshape(1, side, side).expand(3, -1, -1)
    crop = max(int(0.9 * side), 1)
    start = int(round((side - crop) / 2))  # noqa: RUF046
    view = Squash(crop, (0, 0, 0), (1 / 255, 1 / 255, 1 / 255), center_crop=0.9)
    torch.testing.assert_close(view(numbers)[0], numbers[0, start : start + crop, start : start + crop])


def test_overshoot_is_kept_and_the_image_is_not_changed() -> None:
    image = torch.zeros(3, 8, 8)
    image[:, :, 4:] = 255
    before = image.clone()
    out = Squash(32, (0, 0, 0), (1, 1, 1))(image)
    assert out.min() < 0
    assert out.max() > 1
    Squash(8, (0, 0, 0), (1, 1, 1))(image)
    assert torch.equal(image, before)


def test_uint8_and_float_give_the_same(photos: list[Tensor]) -> None:
    for view in (Squash(48, MEAN, STD, center_crop=0.9), RandomSquareCrop(48, MEAN, STD)):
        for image in photos:
            assert torch.equal(view(image, 3), view(image.float(), 3))


def test_squash_scripts_and_saves(photos: list[Tensor]) -> None:
    for pad, crop in ((False, 1.0), (True, 0.9), (True, 1.0), (False, 0.9)):
        view = Squash(48, MEAN, STD, pad_to_square=pad, center_crop=crop)
        with _quiet.torchscript():
            buffer = io.BytesIO()
            torch.jit.save(torch.jit.script(view), buffer)
            buffer.seek(0)
            loaded = torch.jit.load(buffer)
        for image in photos:
            assert torch.equal(loaded(image), view(image))


def test_random_crop_is_deterministic_and_differs_by_seed_and_by_image(photo: Callable[..., Tensor]) -> None:
    view = RandomSquareCrop(48, MEAN, STD)
    first, second = photo(120, 125), photo(120, 125, 1)
    assert torch.equal(view(first, 5), view(first, 5))
    assert len({view.square(first, seed) for seed in range(50)}) > 25
    same_seed = [(view.square(first, seed), view.square(second, seed)) for seed in range(50)]
    assert sum(a == b for a, b in same_seed) < 10


def test_random_crop_draws_torchvisions_squares(photo: Callable[..., Tensor]) -> None:
    """Side and place are those of RandomResizedCrop with ratio 1: distribution of area, bounds, and what is cut out."""
    image = photo(100, 104)
    view = RandomSquareCrop(32, MEAN, STD, area=(0.5, 0.9))
    squares = [view.square(image, seed) for seed in range(2000)]
    areas = torch.tensor([side**2 / 10400 for *_, side in squares])
    assert areas.min() >= 0.5 - 0.01
    assert areas.max() <= 0.9 + 0.01
    assert abs(areas.mean() - 0.7) < 0.01  # uniform: 0.7 +- 0.0026
    assert abs(areas.std() - 0.4 / 12**0.5) < 0.01
    assert all(0 <= top <= 100 - side and 0 <= left <= 104 - side for top, left, side in squares)
    assert {top for top, _, side in squares if side == 90} == set(range(11))
    top, left, side = view.square(image, 1)
    cut = image[:, top : top + side, left : left + side]
    torch.testing.assert_close(view(image, 1).double(), bilinear_by_hand(cut, 32), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(50, 100), (100, 50), (1, 50), (99, 60)])
def test_random_crop_falls_back_to_the_centred_short_side(
    photo: Callable[..., Tensor], height: int, width: int
) -> None:
    image = photo(height, width)
    side = min(height, width)
    square = ((height - side) // 2, (width - side) // 2, side)
    assert {RandomSquareCrop(32, MEAN, STD).square(image, seed) for seed in range(20)} == {square}


def test_near_square_images_get_random_crops(photo: Callable[..., Tensor]) -> None:
    squares = {RandomSquareCrop(32, MEAN, STD).square(photo(100, 105), seed) for seed in range(50)}
    assert len(squares) > 20
    assert all(0.9 * 10500 * 0.98 <= side**2 <= 10500 for *_, side in squares)


def test_one_pixel() -> None:
    pixel = torch.tensor([[[255]], [[0]], [[51]]], dtype=torch.uint8)
    for view in (
        Squash(7, (0, 0, 0), (1, 1, 1), pad_to_square=True, center_crop=0.9),
        RandomSquareCrop(7, (0, 0, 0), (1, 1, 1)),
    ):
        torch.testing.assert_close(view(pixel), torch.tensor([1.0, 0.0, 0.2])[:, None, None].expand(3, 7, 7))


def test_size_values() -> None:
    assert size_values(300, 200, 224).tolist() == pytest.approx([1.5, 300 / 224, 200 / 224])
    batch = size_values(torch.tensor([300, 10]), torch.tensor([200, 40]), 224)
    assert batch.shape == (2, 3)
    assert torch.equal(batch[0], size_values(300, 200, 224))
    assert torch.equal(batch[1], size_values(10, 40, 224))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(size=0), "size of a view is 0; it is the side of the square in pixels, from 1 to 10,000"),
        (dict(size=10_001), "size of a view is 10,001"),
        (dict(center_crop=0.0), "center_crop of a view is 0.0"),
        (dict(center_crop=1.2), "center_crop of a view is 1.2"),
        (dict(interpolation="nearest"), "'bicubic' or 'bilinear'"),
        (dict(mean=(0.5, 0.5)), "mean of a view has 2 values"),
        (dict(std=(0.5, 0.5, 0.0)), "each value is above 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Squash(**{"size": 32, "mean": MEAN, "std": STD, **arguments})


def test_wrong_images() -> None:
    for view in (Squash(32, MEAN, STD), RandomSquareCrop(32, MEAN, STD)):
        for shape in ((1, 3, 8, 8), (1, 8, 8), (8, 8), (3, 0, 8)):
            with pytest.raises(UsageError, match=r"one image of shape \[3, height, width\]"):
                view(torch.zeros(shape))
    with pytest.raises(UsageError, match="area of a view"):
        RandomSquareCrop(32, MEAN, STD, area=(0.9, 1.1))


@pytest.mark.parametrize(("part", "interpolation"), [(1.0, "bicubic"), (0.875, "bicubic"), (0.9, "bilinear")])
def test_center_crop_is_torchvisions(photos: list[Tensor], part: float, interpolation: str) -> None:
    mode = getattr(TF.InterpolationMode, interpolation.upper())
    view = CenterCrop(64, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), part=part, interpolation=interpolation)  # type: ignore[arg-type]
    for photo in photos:
        if max(photo.shape) / min(photo.shape[1:]) > 30:
            continue
        wanted = TF.resize(photo.float(), [int(64 / part)], mode, antialias=True)
        wanted = TF.normalize(TF.center_crop(wanted, [64, 64]) / 255, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
        torch.testing.assert_close(view(photo), wanted, rtol=0, atol=2e-5)


def test_center_crop_scripts_and_takes_any_shape(photos: list[Tensor]) -> None:
    view = CenterCrop(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), part=0.9)
    with _quiet.torchscript():
        scripted = torch.jit.script(view)
    for photo in photos:
        assert view(photo).shape == (3, 32, 32)
        torch.testing.assert_close(scripted(photo), view(photo))
    with pytest.raises(UsageError, match="part of a view is 0"):
        CenterCrop(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), part=0.0)


@pytest.mark.parametrize("part", [1.0, 0.9, 1.15])
def test_squash_crops_or_pads_after_the_resize(photos: list[Tensor], part: float) -> None:
    view = Squash(64, MEAN, STD, part=part)
    with _quiet.torchscript():
        scripted = torch.jit.script(view)
    side = math.floor(64 / part)
    for photo in photos:
        resized = TF.resize(photo.float(), [side, side], TF.InterpolationMode.BICUBIC, antialias=True)
        wanted = normalised(TF.center_crop(resized, [64, 64]))
        torch.testing.assert_close(view(photo), wanted, rtol=0, atol=2e-5)
        assert torch.equal(scripted(photo), view(photo))
    with pytest.raises(UsageError, match=r"part of a view is 2\.1"):
        Squash(64, MEAN, STD, part=2.1)


def test_center_crops_short_side_is_rounded_down(photos: list[Tensor]) -> None:
    """64 / .9 is 71.1 and 64 / .97 is 65.98: both down, as torchvision's and timm's are; part above 1 pads."""
    for part in (0.9, 0.97, 1.15):
        view = CenterCrop(64, MEAN, STD, part=part)
        for photo in photos:
            if max(photo.shape[1:]) < 30 * min(photo.shape[1:]):
                wanted = TF.resize(photo.float(), [int(64 / part)], TF.InterpolationMode.BICUBIC, antialias=True)
                wanted = normalised(TF.center_crop(wanted, [64, 64]))
                torch.testing.assert_close(view(photo), wanted, rtol=0, atol=2e-5)


def uncut(image: Tensor, size: int, part: float, mode: str, antialias: bool) -> Tensor:
    """CenterCrop's formula in float64, the whole long side resized."""
    height, width = image.shape[1:]
    short = math.floor(size / part)
    side = [short, int(short * width / height)] if height <= width else [int(short * height / width), short]
    resized = torch.nn.functional.interpolate(image.double()[None], side, mode=mode, antialias=antialias)[0]
    return normalised(TF.center_crop(resized, [size, size]))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(1, 150), (3, 500), (300, 20_000), (700, 31_111)])
def test_long_images_are_cut_before_they_are_resized(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], interpolation: Any, antialias: bool
) -> None:
    monkeypatch.setattr(views, "MANY_PIXELS", 20_000)
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    largest = 0
    interpolate = torch.nn.functional.interpolate

    def measured(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        nonlocal largest
        out = interpolate(x, *arguments, **options)
        largest = max(largest, out.numel(), x.numel())
        return out

    view = CenterCrop(64, MEAN, STD, part=0.9, interpolation=interpolation, antialias=antialias)
    with _quiet.torchscript():
        scripted = torch.jit.script(view)
    for upright in (image, image.transpose(1, 2)):
        wanted = uncut(upright, 64, 0.9, interpolation, antialias).float()
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "interpolate", measured)
            torch.testing.assert_close(view(upright), wanted, rtol=0, atol=ROUNDING[antialias])
        torch.testing.assert_close(scripted(upright), wanted, rtol=0, atol=ROUNDING[antialias])
    assert largest < 3 * max(71, shape[0]) * (1.2 * shape[0] + 100)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("crop", "shape"), [(1.0, (10, 2500)), (0.9, (1, 2500)), (0.9, (700, 2500)), (0.3, (500, 2500))]
)
def test_padding_to_a_large_square_makes_no_square(
    monkeypatch: pytest.MonkeyPatch, crop: float, shape: tuple[int, int], interpolation: Any, antialias: bool
) -> None:
    monkeypatch.setattr(views, "MANY_PIXELS", 200_000)
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    view = Squash(
        64, MEAN, STD, pad_to_square=True, center_crop=crop, interpolation=interpolation, antialias=antialias, part=0.9
    )
    sizes = []
    interpolate = torch.nn.functional.interpolate

    def measured(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        sizes.append(x.shape[2:].numel())
        return interpolate(x, *arguments, **options)

    for upright in (image, image.transpose(1, 2)):
        height, width = upright.shape[1:]
        top, left = (2500 - height) // 2, (2500 - width) // 2
        padded = TF.pad(upright.double(), [left, top, 2500 - width - left, 2500 - height - top])
        padded = TF.center_crop(padded, [int(crop * 2500)] * 2)
        resized = interpolate(padded[None], [71, 71], mode=interpolation, antialias=antialias)[0]
        wanted = normalised(TF.center_crop(resized, [64, 64])).float()
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "interpolate", measured)
            torch.testing.assert_close(view(upright), wanted, rtol=0, atol=ROUNDING[antialias])
        with _quiet.torchscript():
            torch.testing.assert_close(torch.jit.script(view)(upright), wanted, rtol=0, atol=ROUNDING[antialias])
    assert max(sizes) == int(crop * 2500) * shape[0]
