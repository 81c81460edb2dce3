"""TensorFlow as the second reader: what tf.data gives, beside each record that we find."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from guie_datasets.images.tensorflow import import_tensorflow, reason

from .framing import Frame, TFRecordError


def beside(
    frames: Iterable[Frame], path: str, compression: str, image: str, label: str
) -> Iterator[tuple[Frame, tuple[bytes, int] | str]]:
    """Each frame with (encoded image, label) as `tf.data.TFRecordDataset` and `tf.io.parse_single_example` read them,
    or with what they find wrong.

    Raises TFRecordError where tf.data cannot read on, and where it finds more or fewer records.
    """
    tf = import_tensorflow()
    wanted = {image: tf.io.FixedLenFeature([], tf.string), label: tf.io.FixedLenFeature([], tf.int64)}
    options = tf.data.Options()
    options.autotune.enabled = False  # nothing is read ahead: a length is looked at by us before TensorFlow trusts it
    options.experimental_optimization.apply_default_optimizations = False
    number = position = 0
    with tf.device("cpu"):
        dataset = tf.data.TFRecordDataset(path, compression_type=compression.upper()).with_options(options)
        found: Iterator[dict[str, Any]] = iter(dataset.map(lambda data: tf.io.parse_single_example(data, wanted)))
        for frame in frames:
            number, position = frame.number + 1, frame.offset + len(frame.data) + 4
            try:
                features = next(found)
            except StopIteration:
                raise TFRecordError(path, frame.number, frame.start, "TensorFlow finds the file's end here") from None
            except tf.errors.InvalidArgumentError as error:  # the next record can be read
                yield frame, f"TensorFlow: {reason(error).rpartition('Iterator::Root::Map: ')[2]}"
            except UnicodeDecodeError:  # its message quotes the record
                yield frame, "TensorFlow cannot parse it"
            except tf.errors.OpError as error:
                problem = f"TensorFlow cannot read on: {reason(error)}"
                raise TFRecordError(path, frame.number, frame.start, problem) from None
            else:
                yield frame, (features[image].numpy(), int(features[label]))
        try:
            more = next(found, None) is not None
        except tf.errors.OpError:
            more = True
    if more:
        raise TFRecordError(path, number, position, "the file ends here, but TensorFlow finds more")
