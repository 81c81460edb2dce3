from . import tfrecord as tfrecord
from .rows import Dataset as Dataset
from .rows import ImageRef as ImageRef
from .rows import LeftOut as LeftOut
from .rows import Row as Row
