"""A data set plugin for guie: 1,034 emoji, each drawn in six styles."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
