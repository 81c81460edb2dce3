from .dataset import STYLES as STYLES
from .dataset import Drawing as Drawing
from .dataset import Emoji as Emoji
