"""TensorFlow's own decoding, for those who must match the pixels that a model was trained on with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from guie_core import GuieError
from guie_datasets.images.decoding import BadImage, header_size

if TYPE_CHECKING:
    from numpy.typing import NDArray


def import_tensorflow() -> Any:
    """The module `tensorflow`. Raises GuieError, which says how to get it, where it is not installed."""
    try:
        import tensorflow
    except ImportError as error:
        raise GuieError(
            f"TensorFlow cannot be imported ({error}). Install it: pip install 'guie-datasets[tensorflow]'"
        ) from error
    return tensorflow


def tensorflow_decode(data: bytes) -> NDArray[np.uint8]:
    """As `tf.image.decode_jpeg(data, channels=3)`, the decoder of the 5th place's tfrec2png.py: uint8 [3, H, W].

    It takes JPEG, PNG, WebP and GIFs of one frame. Nothing else is done to the image: H and W are those stored, since
    EXIF orientation is not applied, and colours under alpha are taken as they are.

    Raises BadImage: of another kind, damaged, truncated, or over `decoding.MAX_PIXELS`; GuieError without TensorFlow.
    """
    tf = import_tensorflow()
    header_size(data)  # TensorFlow itself has no limit on pixels that would help
    try:
        image = tf.image.decode_jpeg(data, channels=3).numpy()
    except tf.errors.OpError as error:
        raise BadImage(f"TensorFlow: {reason(error)}") from None
    if image.ndim == 4:  # WebP, as an animation
        image = image[0]
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def reason(error: Any) -> str:
    """What one of TensorFlow's errors says, without the operation's name and flags around it."""
    return str(error.message).partition("[Op:")[0].rpartition("}} ")[2].strip().partition("\n")[0].rstrip(".")
