"""Preprocessing, backbones, heads, losses, embedders and export for image embeddings.

Public names are imported when they are first used: importing this package imports neither torch nor timm.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
