"""Encoded bytes to uint8 [3, H, W]: one path for every image, whatever wrote it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

import numpy as np
import simplejpeg
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from guie_core import GuieError, UsageError
from guie_datasets.images import jpeg

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

#: Larger images are refused before they are decoded: decoding one of this size takes about 0.5 GB.
MAX_PIXELS = 100_000_000

#: How an image is decoded; see `decode`.
Method = Literal["full", "scaled", "tensorflow"]
METHODS: tuple[Method, ...] = ("full", "scaled", "tensorflow")

#: A scaled decode leaves both sides at least so many times the target, for the resize that follows to be a real one.
MARGIN = 1.5

_PLUGINS = [
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
    BmpImagePlugin.BmpImageFile,
    TiffImagePlugin.TiffImageFile,
    Jpeg2KImagePlugin.Jpeg2KImageFile,
    PpmImagePlugin.PpmImageFile,
    AvifImagePlugin.AvifImageFile,
]

#: The formats that are read. A list of ours, since Pillow would also hand EPS files to Ghostscript.
FORMATS = tuple(plugin.format or "" for plugin in _PLUGINS)

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)  # orientations that swap the sides


class BadImage(GuieError):  # noqa: N818  it names the thing, and is a row of the quarantine as often as it is raised
    """Bytes that are no image, or an image that cannot be decoded.

    reason: what is wrong with it. place: where it is, "" if only the bytes are known.
    """

    def __init__(self, reason: str, place: str = "") -> None:
        self.reason, self.place = reason, place
        super().__init__(f"{place}: {reason}" if place else reason)

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        return type(self), (self.reason, self.place)


def decode(data: bytes, method: Method = "full", target: int | None = None) -> NDArray[np.uint8]:
    """Decodes an image to RGB, uint8 [3, H, W].

    - EXIF (or XMP) orientation is applied: H and W are those of the image as it is looked at.
    - Alpha and transparent palette colours are blended over white.
    - CMYK, YCCK, palette, gray and bilevel images become RGB; embedded colour profiles are ignored.
    - Of 16 bits the upper 8 count, as in libpng; 12-bit TIFFs likewise.
    - Of animations the first frame is taken.

    In memory the three values of a pixel lie side by side, as decoders write them and as torch resizes fastest: the
    array is a view, not C-contiguous, with values equal to those of one that is.

    Methods:

    - "full": every pixel, the same on every machine. Plain JPEGs take three quarters of Pillow's time, for the same
      pixels: `simplejpeg` calls libjpeg-turbo, which Pillow uses as well, directly.
    - "scaled": JPEGs at 1/8, 1/4 or 1/2 of their sides, the smallest that leaves both at least `MARGIN` times `target`
      pixels: 1024 x 768 for 224 becomes 512 x 384. Most of the inverse cosine transform, and of the resize that
      follows, is left out; pixels change a little (mean difference about .3 of 255 after the resize to 224), hence
      embeddings as well: `benchmarks/decoding.py` prints by how much. H and W become those of the smaller image. Other
      formats, and images that are small already, are decoded in full.
    - "tensorflow": by TensorFlow, for those who must match its pixels (`guie_datasets.images.tensorflow`).

    Raises BadImage: not an image of `FORMATS`, truncated, damaged, over `MAX_PIXELS`, or with pixels whose range is not
    known (floating point, 32-bit integers). UsageError: an unknown method, or "scaled" without a target.
    """
    if method == "tensorflow":
        from guie_datasets.images.tensorflow import tensorflow_decode

        return tensorflow_decode(data)
    check_method(method, target)
    if (pixels := _plain_jpeg(data, target if method == "scaled" else None)) is not None:
        return pixels.transpose(2, 0, 1)
    image = _open(data)
    orientation = _orientation(image)
    with _described(image):
        if method == "scaled" and isinstance(image, JpegImagePlugin.JpegImageFile):
            width, height = image.size
            scale = _scale(width, height, target)
            image.draft(None, (width // scale, height // scale))
        rgb = _rgb(image)
        if orientation in _TRANSPOSE:
            rgb = rgb.transpose(_TRANSPOSE[orientation])
        return np.array(rgb).transpose(2, 0, 1)


def _plain_jpeg(data: bytes, target: int | None) -> NDArray[np.uint8] | None:
    """A plain JPEG [H, W, 3] without Pillow, where that can be done; None leaves it, and any complaint, to Pillow."""
    found = jpeg.header(data)
    if found is None or found.components != 3 or found.orientation in _TRANSPOSE:
        return None
    width, height = found.width, found.height
    if width * height > MAX_PIXELS:
        return None
    scale = _scale(width, height, target)
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data,
            "RGB",
            fastdct=False,
            fastupsample=False,
            # the smallest of its scales that is at least so large is 1/scale
            min_height=-(-height // scale) if scale > 1 else 0,
            min_width=-(-width // scale) if scale > 1 else 0,
            min_factor=scale,
        )
    except ValueError:  # also for what Pillow tolerates
        return None
    return pixels


def check_method(method: Method, target: int | None) -> None:
    """Raises UsageError unless `decode` would take these."""
    if method not in METHODS:
        raise UsageError(f"There is no decoding method {method!r}; it is one of {', '.join(METHODS)}.")
    if method == "scaled" and (target is None or target < 1):
        raise UsageError("A scaled decode needs a target: the side, in pixels, that images are resized to afterwards.")


def _scale(width: int, height: int, target: int | None) -> int:
    """By what a JPEG's sides are divided in decoding, so that they stay well over `target` pixels; None: by 1."""
    for scale in (8, 4, 2):
        if target and min(-(-width // scale), -(-height // scale)) >= MARGIN * target:
            return scale
    return 1


def header_size(data: bytes) -> tuple[int, int]:
    """(width, height) of the decoded image, i.e. after EXIF orientation, from the header alone. Raises BadImage."""
    return _jpeg_size(data) or _size(_open(data))


def examine(data: bytes) -> tuple[int, int]:
    """As `header_size`, and BadImage if the image is not whole.

    JPEGs are examined for their end, PNGs for the checksums of their chunks, which costs little; images of other
    formats, and JPEGs that don't end where they should, are decoded. Not found is damage inside a JPEG that shows only
    in decoding, or that its decoder tolerates; the former stops nobody (see `reading.read_images`).
    """
    size = _jpeg_size(data)
    if size and _ends_well(data):
        return size
    image = _open(data)
    size = _size(image)
    if image.format == "PNG":
        with _described(image):
            image.verify()
    elif image.format not in ("JPEG", "MPO") or not _ends_well(data):
        decode(data)
    return size


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG whose header is in order and within the limit."""
    found = jpeg.header(data)
    if found is None or found.width * found.height > MAX_PIXELS:
        return None
    return (found.height, found.width) if found.orientation in _TURNED else (found.width, found.height)


def _ends_well(data: bytes) -> bool:
    """Whether the end of a JPEG is an image's end; a few bytes after it are common and harmless."""
    return b"\xff\xd9" in data[-32:]


def _open(data: bytes) -> ImageFile:
    """The image with its header read. Pillow's `Image.open` is passed by for its pixel limit, which is a warning."""
    if not data:
        raise BadImage("empty: 0 bytes")
    prefix = data[:16]
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        accepted = accept is None or accept(prefix)
        if isinstance(accepted, str):
            raise BadImage(f"{name}: {accepted}")
        if accepted:
            break
    else:
        raise BadImage(f"not an image: {len(data)} bytes that start with {prefix!r}")
    try:
        image = factory(io.BytesIO(data), "")
    except Exception as error:  # what a decoder raises on damaged bytes is anything
        raise BadImage(f"{name}: {_text(error)}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"{name}: {width} x {height} is over the limit of {MAX_PIXELS // 10**6} megapixels")
    return image


class _described:  # noqa: N801  used like a function
    """Turns what a decoder raises into BadImage."""

    def __init__(self, image: ImageFile) -> None:
        self.image = image

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, BadImage | MemoryError):
            raise BadImage(f"{self.image.format}: {_text(error)}") from error


def _text(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def _orientation(image: ImageFile) -> int:
    """EXIF orientation, 1..8. Metadata after the pixels of a PNG are not looked for, and damaged ones don't count."""
    if image.format == "TIFF":  # Pillow applies it itself, to the size too
        return 1
    try:
        return int(Image.Image.getexif(image).get(0x0112, 1))
    except Exception:
        return 1


def _size(image: ImageFile) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image) in _TURNED else (width, height)


def _rgb(image: ImageFile) -> Image.Image:
    image.load()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _from_16_bits(image).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise BadImage(f"{image.format}: {kind} pixels, whose range is not known; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: ImageFile) -> Image.Image:
    bits, inverted = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
        # 0: white is zero, which Pillow looks after at 1 to 8 bits only
        inverted = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    values = np.asarray(image)
    gray = (values >> (bits - 8)).astype(np.uint8)
    if inverted:
        gray = 255 - gray
    if isinstance(transparent := image.info.get("transparency"), int):
        gray[values == transparent] = 255
    return Image.fromarray(gray)
