"""guie-train: stages, recipes, evaluation and reports.

Names are imported when they are first used, so that listing what there is stays quick.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
