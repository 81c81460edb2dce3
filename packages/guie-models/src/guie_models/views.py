"""Views: from a decoded image to what a backbone reads, with tensor operations only.

Shapes: an image is [3, H, W] in 0..255 (uint8, or float of the same range); a view of it is float32 [3, size, size],
normalised.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guie_core import UsageError

Interpolation = Literal["bicubic", "bilinear"]

LARGEST = 10_000
"""Pixels of a view's side: as many in all as the largest images that data sets take."""
MANY_PIXELS = 2**22
"""An image that would be resized or padded to more than this, 50 MB in float32, is resized by matrices of weights
instead, one axis at a time: the same but for rounding, without the large copy."""


def size_values(height: int | Tensor, width: int | Tensor, size: int) -> Tensor:
    """The three values that the recipe appends to an image's features (5th place, point 3): H/W, H/size, W/size.

    `height` and `width` are those of the image as it was decoded, in pixels, before any crop or padding; numbers give
    [3], tensors [B] give [B, 3].
    """
    heights = torch.as_tensor(height).to(torch.float32)
    widths = torch.as_tensor(width).to(torch.float32)
    return torch.stack([heights / widths, heights / size, widths / size], dim=-1)


def _channels(values: Sequence[float], name: str) -> Tensor:
    if len(values) != 3:
        raise UsageError(
            f"{name} of a view has {len(values)} values; it needs three, one for each of red, green and blue."
        )
    return torch.tensor([float(value) for value in values], dtype=torch.float32).reshape(3, 1, 1)


def _check(size: int, std: Sequence[float], interpolation: str) -> None:
    if not 1 <= size <= LARGEST:
        raise UsageError(f"size of a view is {size:,}; it is the side of the square in pixels, from 1 to {LARGEST:,}.")
    if any(value <= 0 for value in std):
        raise UsageError(f"std of a view is {tuple(std)}; pixels are divided by it, so each value is above 0.")
    if interpolation not in ("bicubic", "bilinear"):
        raise UsageError(f"interpolation of a view is {interpolation!r}; it is 'bicubic' or 'bilinear'.")


def _check_image(image: Tensor) -> None:
    if image.dim() != 3 or image.shape[0] != 3 or image.shape[1] < 1 or image.shape[2] < 1:
        grey = image.dim() == 2 or (image.dim() == 3 and image.shape[0] == 1)
        raise UsageError(
            f"A view takes one image of shape [3, height, width]; this one is {list(image.shape)}."
            + (" A greyscale one is expanded: image.expand(3, -1, -1)." if grey else "")
        )


def _check_part(part: float) -> None:
    if not 0.0 < part <= 2.0:
        raise UsageError(
            f"part of a view is {part}; it is the part of the resized image that stays, above 0 and up to 2 (beyond 1,"
            " zeros are put around the image)."
        )


def _centred_square(image: Tensor, size: int) -> Tensor:
    """The square [3, size, size] in the middle of an image [3, H, W]; zeros around a smaller one, as torchvision's
    `CenterCrop` has them."""
    less_height = max(size - image.shape[1], 0)
    less_width = max(size - image.shape[2], 0)
    if less_height > 0 or less_width > 0:
        sides = [less_width // 2, (less_width + 1) // 2, less_height // 2, (less_height + 1) // 2]
        image = F.pad(image, sides)
    top = int(round((image.shape[1] - size) / 2.0))  # noqa: RUF046  TorchScript's round gives a float
    left = int(round((image.shape[2] - size) / 2.0))  # noqa: RUF046
    return image[:, top : top + size, left : left + size]


def _weights(
    first: int, last: int, start: int, count: int, scale: float, bicubic: bool, antialias: bool, like: Tensor
) -> Tensor:
    """What pixels first..last - 1 of an axis weigh in pixels start..start + count - 1 of that axis resized by 1 /
    `scale`: [count, last - first], float32, each row summing to 1. As `torch.nn.functional.interpolate` has them (Keys'
    cubic with a = -.5, or -.75 without antialias), but where it repeats an edge."""
    stretch = max(scale, 1.0) if antialias else 1.0
    at = torch.arange(first, last, dtype=torch.float64, device=like.device) + 0.5
    centres = (torch.arange(start, start + count, dtype=torch.float64, device=like.device) + 0.5) * scale
    x = (at[None, :] - centres[:, None]).abs() / stretch
    if bicubic:
        a = -0.5 if antialias else -0.75
        near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
        weights = torch.where(x < 1.0, near, (((x - 5.0) * x + 8.0) * x - 4.0) * a)
        weights = weights.masked_fill(x >= 2.0, 0.0)
    else:
        weights = (1.0 - x).clamp(min=0.0)
    return (weights / weights.sum(dim=1, keepdim=True)).to(torch.float32)


class Squash(nn.Module):
    """Resize to a square regardless of the aspect ratio, after an optional padding and centre crop.

    The recipe's arithmetic (5th place, points 3 and 10), in this order:

    1. `pad_to_square`: zeros around the image, the floor half above or left, the remainder below or right;
    2. `center_crop` c: to (int(c * H), int(c * W)), but one pixel at least, from int(round((side - crop) / 2)), halves
       to the even side;
    3. resize to [size, size] in float32: what bicubic overshoots below 0 or above 255 is kept; with `part`, to
       floor(size / part) a side, of which the centred [size, size] is cut out (timm's crop_mode "squash" with crop_pct
       = `part`; zeros around it where `part` is above 1);
    4. / 255, - mean, / std.

    forward: image [3, H, W] in 0..255 -> float32 [3, size, size]. Scriptable. `seed` is taken for the sake of one
    signature for all views. Raises UsageError for another shape.
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        pad_to_square: bool = False,
        center_crop: float = 1.0,
        interpolation: Interpolation = "bicubic",
        antialias: bool = True,
        part: float = 1.0,
    ) -> None:
        super().__init__()
        _check(size, std, interpolation)
        _check_part(part)
        if not 0.0 < center_crop <= 1.0:
            raise UsageError(
                f"center_crop of a view is {center_crop}; it is the part of each side that stays, above 0 and up to 1."
            )
        self.size = size
        self.pad_to_square = pad_to_square
        self.center_crop = float(center_crop)
        self.part = float(part)
        self.many_pixels = MANY_PIXELS  # TorchScript reads no constants of modules
        self.interpolation: str = interpolation
        self.antialias = antialias
        self.mean: Tensor
        self.register_buffer("mean", _channels(mean, "mean"))
        self.std: Tensor
        self.register_buffer("std", _channels(std, "std"))

    def forward(self, image: Tensor, seed: int = 0) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            _check_image(image)
        height = image.shape[1]
        width = image.shape[2]
        top, bottom, left, right = 0, 0, 0, 0
        if self.pad_to_square:
            side = max(height, width)
            top = (side - height) // 2
            bottom = side - height - top
            left = (side - width) // 2
            right = side - width - left
        padded_height = height + top + bottom
        padded_width = width + left + right
        crop_height = max(int(self.center_crop * padded_height), 1)
        crop_width = max(int(self.center_crop * padded_width), 1)
        # int, since TorchScript's round gives a float
        crop_top = int(round((padded_height - crop_height) / 2.0))  # noqa: RUF046
        crop_left = int(round((padded_width - crop_width) / 2.0))  # noqa: RUF046
        # a negative padding crops, so that one copy of the image does both
        top -= crop_top
        left -= crop_left
        bottom = crop_height - height - top
        right = crop_width - width - left
        side = int(math.floor(self.size / self.part))  # noqa: RUF046  TorchScript's floor gives a float
        many = self.pad_to_square and crop_height * crop_width > self.many_pixels
        # not where the image itself is at an edge of the crop, which the weights don't repeat
        if many and top >= 2 and bottom >= 2:
            image = self._resized(F.pad(image, [left, right]), crop_height, top, side)
        elif many and left >= 2 and right >= 2:
            upright = F.pad(image, [0, 0, top, bottom]).transpose(1, 2)
            image = self._resized(upright, crop_width, left, side).transpose(1, 2)
        else:
            if top != 0 or bottom != 0 or left != 0 or right != 0:
                image = F.pad(image, [left, right, top, bottom])
            image = F.interpolate(
                image.to(torch.float32).unsqueeze(0),
                size=[side, side],
                mode=self.interpolation,
                align_corners=False,
                antialias=self.antialias,
            )[0]
        if self.part != 1.0:
            image = _centred_square(image, self.size)
        return image.div(255.0).sub_(self.mean).div_(self.std)

    def _resized(self, image: Tensor, height: int, top: int, side: int) -> Tensor:
        """[3, side, side] of an image [3, H, W] with zeros above (`top` rows) and below, `height` in all."""
        rows = image.shape[1]
        image = F.interpolate(
            image.to(torch.float32).unsqueeze(0),
            size=[rows, side],
            mode=self.interpolation,
            align_corners=False,
            antialias=self.antialias,
        )[0]
        bicubic = self.interpolation == "bicubic"
        weights = _weights(0, height, 0, side, height / side, bicubic, self.antialias, image)
        return torch.matmul(weights[:, top : top + rows], image)

    def extra_repr(self) -> str:
        return (
            f"size={self.size}, pad_to_square={self.pad_to_square}, center_crop={self.center_crop}, "
            f"interpolation={self.interpolation!r}, antialias={self.antialias}"
            + (f", part={self.part}" if self.part != 1.0 else "")
        )


class CenterCrop(nn.Module):
    """The centred square of an image that keeps its aspect: how most published networks were evaluated.

    Resize so that the short side has floor(size / part) pixels and the long one int(that * long / short), in float32,
    overshoot kept; cut out the centred [size, size], from int(round((side - size) / 2)), with zeros around where `part`
    is above 1; / 255, - mean, / std. It is torchvision's `Resize` and `CenterCrop`, and timm's crop_mode "center" with
    crop_pct = `part`. Of a long image only what the square shows is resized.

    forward: image [3, H, W] in 0..255 -> float32 [3, size, size]. Scriptable. `seed` is taken for the sake of one
    signature for all views. Raises UsageError for another shape.
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        part: float = 1.0,
        interpolation: Interpolation = "bicubic",
        antialias: bool = True,
    ) -> None:
        super().__init__()
        _check(size, std, interpolation)
        _check_part(part)
        self.size = size
        self.part = float(part)
        self.many_pixels = MANY_PIXELS  # TorchScript reads no constants of modules
        self.interpolation: str = interpolation
        self.antialias = antialias
        self.mean: Tensor
        self.register_buffer("mean", _channels(mean, "mean"))
        self.std: Tensor
        self.register_buffer("std", _channels(std, "std"))

    def forward(self, image: Tensor, seed: int = 0) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            _check_image(image)
        height = image.shape[1]
        width = image.shape[2]
        short = int(math.floor(self.size / self.part))  # noqa: RUF046  TorchScript's floor gives a float
        if height <= width:
            new_height, new_width = short, int(short * width / height)
        else:
            new_height, new_width = int(short * height / width), short
        long, new_long = max(height, width), max(new_height, new_width)
        left = int(round((new_long - self.size) / 2.0))  # noqa: RUF046
        scale = long / new_long
        reach = 2.0 * max(scale, 1.0)  # of the widest filter, which is bicubic
        first = int(math.floor(left * scale - reach))  # noqa: RUF046
        last = int(math.ceil((left + self.size) * scale + reach))  # noqa: RUF046
        cut = new_height * new_width > self.many_pixels and first >= 0 and last <= long
        if cut:
            lying = image if height <= width else image.transpose(1, 2)
            image, new_height, new_width = lying[:, :, first:last], short, last - first
        image = F.interpolate(
            image.to(torch.float32).unsqueeze(0),
            size=[new_height, new_width],
            mode=self.interpolation,
            align_corners=False,
            antialias=self.antialias,
        )[0]
        if cut:
            bicubic = self.interpolation == "bicubic"
            weights = _weights(first, last, left, self.size, scale, bicubic, self.antialias, image)
            image = torch.matmul(image, weights.t())
            image = image if height <= width else image.transpose(1, 2)
        return _centred_square(image, self.size).div(255.0).sub_(self.mean).div_(self.std)

    def extra_repr(self) -> str:
        return f"size={self.size}, part={self.part}, interpolation={self.interpolation!r}, antialias={self.antialias}"


class RandomSquareCrop(nn.Module):
    """A random square of 0.9 to 1.0 of the image's area, resized (5th place, point 3: the train view).

    torchvision's `RandomResizedCrop` with ratio 1: up to ten draws of a side int(round(sqrt(area * H * W))); the first
    that fits is cut out at a random place. When none fits, which is certain where long side / short side > 1 / 0.9, it
    is the centred square of the short side. Then resize, / 255, - mean, / std.

    forward: image [3, H, W] in 0..255, seed -> float32 [3, size, size]. The same image and seed give the same view on
    every machine and in every thread; two images draw independently under one seed, because the image's bytes are mixed
    into it. Raises UsageError for another shape.
    """

    random = True  # other views give the same whatever the seed

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        area: tuple[float, float] = (0.9, 1.0),
        interpolation: Interpolation = "bilinear",
        antialias: bool = False,
    ) -> None:
        super().__init__()
        _check(size, std, interpolation)
        if not 0.0 < area[0] <= area[1] <= 1.0:
            raise UsageError(
                f"area of a view is {tuple(area)}; it is (least, most), parts of the image's area above 0 and up to 1."
            )
        self.size = size
        self.area = (float(area[0]), float(area[1]))
        self.interpolation = interpolation
        self.antialias = antialias
        self.mean: Tensor
        self.register_buffer("mean", _channels(mean, "mean"))
        self.std: Tensor
        self.register_buffer("std", _channels(std, "std"))

    def forward(self, image: Tensor, seed: int = 0) -> Tensor:
        _check_image(image)
        top, left, side = self.square(image, seed)
        crop = image[:, top : top + side, left : left + side].to(torch.float32).unsqueeze(0)
        resized = F.interpolate(
            crop, size=[self.size, self.size], mode=self.interpolation, align_corners=False, antialias=self.antialias
        )
        return resized[0].div(255.0).sub_(self.mean).div_(self.std)

    def square(self, image: Tensor, seed: int) -> tuple[int, int, int]:
        """Top, left and side, in pixels, of the square that is cut out of this image under this seed."""
        height, width = image.shape[1], image.shape[2]
        content = zlib.crc32(image.to(device="cpu", dtype=torch.uint8).contiguous().numpy().data)
        draw = random.Random(f"{seed} {height} {width} {content}")
        for _ in range(10):
            side = round(math.sqrt(draw.uniform(*self.area) * height * width))
            if 0 < side <= min(height, width):
                return draw.randint(0, height - side), draw.randint(0, width - side), side
        side = min(height, width)
        return (height - side) // 2, (width - side) // 2, side

    def extra_repr(self) -> str:
        return f"size={self.size}, area={self.area}, interpolation={self.interpolation!r}, antialias={self.antialias}"
