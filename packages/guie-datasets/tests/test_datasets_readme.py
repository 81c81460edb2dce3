"""The README's code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    for label in range(5):
        (tmp_path / "pictures" / f"class{label}").mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / f"class{label}" / f"{number}.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "car.jpg")
    monkeypatch.chdir(tmp_path)

    assert len(BLOCKS) == 2
    names: list[dict[str, Any]] = [{}, {}]
    for block, scope in zip(BLOCKS, names, strict=True):
        exec(compile(block, str(README), "exec"), scope)
    assert [image.shape for image in names[0]["images"]] == [(3, 12, 16)] * 6
    assert len(names[1]["manifest"]) == 1
    assert (tmp_path / "pictures.parquet").is_file()
    assert (tmp_path / "quarantine.csv").read_text() == "kind,place,source,original_label,name,reason,count\n"
