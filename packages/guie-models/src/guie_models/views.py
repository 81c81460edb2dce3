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
    if size < 1:
        raise UsageError(f"size of a view is {size}; it is the side of the square in pixels, 1 or more.")
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


class Squash(nn.Module):
    """Resize to a square regardless of the aspect ratio, after an optional padding and centre crop.

    The recipe's arithmetic (5th place, points 3 and 10), in this order:

    1. `pad_to_square`: zeros around the image, the floor half above or left, the remainder below or right;
    2. `center_crop` c: to (int(c * H), int(c * W)), but one pixel at least, from int(round((side - crop) / 2)), halves
       to the even side;
    3. resize to [size, size] in float32: what bicubic overshoots below 0 or above 255 is kept;
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
    ) -> None:
        super().__init__()
        _check(size, std, interpolation)
        if not 0.0 < center_crop <= 1.0:
            raise UsageError(
                f"center_crop of a view is {center_crop}; it is the part of each side that stays, above 0 and up to 1."
            )
        self.size = size
        self.pad_to_square = pad_to_square
        self.center_crop = float(center_crop)
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
        if top != 0 or bottom != 0 or left != 0 or right != 0:
            image = F.pad(image, [left, right, top, bottom])
        image = image.to(torch.float32).unsqueeze(0)
        image = F.interpolate(
            image, size=[self.size, self.size], mode=self.interpolation, align_corners=False, antialias=self.antialias
        )
        return image[0].div(255.0).sub_(self.mean).div_(self.std)

    def extra_repr(self) -> str:
        return (
            f"size={self.size}, pad_to_square={self.pad_to_square}, center_crop={self.center_crop}, "
            f"interpolation={self.interpolation!r}, antialias={self.antialias}"
        )


class CenterCrop(nn.Module):
    """The centred square of an image that keeps its aspect: how most published networks were evaluated.

    Resize so that the short side has floor(size / part) pixels and the long one int(that * long / short), in float32,
    overshoot kept; cut out the centred [size, size], from int(round((side - size) / 2)); / 255, - mean, / std. It is
    torchvision's `Resize` and `CenterCrop`, and timm's crop_mode "center" with crop_pct = `part`.

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
        if not 0.0 < part <= 1.0:
            raise UsageError(f"part of a view is {part}; it is the part of the short side that stays, above 0 up to 1.")
        self.size = size
        self.part = float(part)
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
        image = image.to(torch.float32).unsqueeze(0)
        image = F.interpolate(
            image, size=[new_height, new_width], mode=self.interpolation, align_corners=False, antialias=self.antialias
        )
        top = int(round((new_height - self.size) / 2.0))  # noqa: RUF046
        left = int(round((new_width - self.size) / 2.0))  # noqa: RUF046
        square = image[0, :, top : top + self.size, left : left + self.size]
        return square.div(255.0).sub_(self.mean).div_(self.std)

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
