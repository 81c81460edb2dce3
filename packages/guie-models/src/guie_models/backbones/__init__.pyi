from .backbone import Backbone as Backbone
from .concatenated import Concatenated as Concatenated
from .open_clip import OpenClipBackbone as OpenClipBackbone
from .timm import TimmBackbone as TimmBackbone
