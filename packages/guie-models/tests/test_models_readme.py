"""The README's code runs as it stands."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guie_core.plugins import plugins

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:FutureWarning")
def test_code(photo: Callable[..., Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = [(90 + 3 * i, 150 - 2 * i) for i in range(6)]
    scope: dict[str, Any] = {
        "photos": [photo(*size, index) for index in (0, 1) for size in sizes],
        "labels": torch.tensor([0] * 6 + [1] * 6),
    }
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(block, "README.md", "exec"), scope)
    assert scope["embedding"].shape == (1, 64)
    torch.testing.assert_close(scope["embedding"], scope["embedder"](scope["photos"][0][None]), atol=1e-5, rtol=0)
    assert scope["report"].path.is_file()
    embeddings = scope["embedder"].embed(scope["photos"])
    similar = embeddings @ embeddings.T
    assert similar[:6, :6].min() > similar[:6, 6:].max()  # the two photographs are told apart


def test_names() -> None:
    table = dict(re.findall(r"^\| (\w+) \| (.*?) \|$", README, re.MULTILINE))
    for entry in plugins().entries():
        if entry.owner and entry.owner.plugin == "models":
            assert f"`{entry.name.replace('/*', '/<model>')}" in table[entry.kind]
