"""From raw downloads to a manifest, and from a manifest to uint8 images.

Public names are imported when they are first used; `import guie_datasets` itself imports neither numpy nor pyarrow.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
