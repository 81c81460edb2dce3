"""What a stage can't say of itself ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guie_core import GuieError


class NotKnown(Exception):  # noqa: N818  no error: it ends a forecast, and the plan goes on
    """Why a stage can't say what it takes."""


def known(function: Callable[[], Any]) -> Any:
    """What `function` gives; None where that isn't known yet."""
    try:
        return function()
    except (NotKnown, GuieError):
        return None
