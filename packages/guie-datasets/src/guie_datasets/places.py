"""Where data lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def data_folder() -> Path:
    """The folder that data sets lie in: $GUIE_DATA, or `data` in the working directory."""
    return Path(os.environ.get("GUIE_DATA") or "data").expanduser().absolute()
