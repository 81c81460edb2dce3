"""The small pieces that messages are made of."""

from __future__ import annotations

import pytest

from guie_core.wording import plural


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (1, "query", "1 query"),
        (5000, "query", "5,000 queries"),
        (2, "key", "2 keys"),
        (2, "class", "2 classes"),
        (3, "batch", "3 batches"),
    ],
)
def test_plural(count: int, noun: str, text: str) -> None:
    assert plural(count, noun) == text
