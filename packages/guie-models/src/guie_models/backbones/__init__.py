"""Backbones by name, with their weights: from images to features."""

import lazy_loader

# what each of them needs takes seconds to import, and most work needs one of them or none
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
