from . import tfrecord as tfrecord
from .decoding import BadImage as BadImage
from .decoding import decode as decode
from .decoding import header_size as header_size
from .rows import Dataset as Dataset
from .rows import ImageRef as ImageRef
from .rows import LeftOut as LeftOut
from .rows import Row as Row
