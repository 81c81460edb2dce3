"""Plugins, experiments, profiles, runs and the ``guie`` command: what every guie package builds on.

Public names are imported when they are first used; ``import guie_core`` itself costs a few milliseconds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
