"""docs/losses.md: its code runs, the losses that it writes for experiments can be trained, its table names all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from guie_core.plugins import plugins
from guie_core.registry import build, check
from guie_train.heads import LOSS_PROVIDES

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "losses.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TABLE = re.findall(r"^\| `(\S+)`.* \| `(dict\(.*\))` \|$", PAGE, re.MULTILINE)
COUNTS = [5, 10, 20, 40]


def run() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the page's code leaves behind, and every loss that it writes as an experiment does."""
    scope: dict[str, Any] = {}
    found: list[dict[str, Any]] = [eval(code) for _, code in TABLE]
    torch.manual_seed(0)
    for block in BLOCKS:
        exec(compile(block, "docs/losses.md", "exec"), scope)
        found += [scope[name] for name in re.findall(r"^(\w+) = dict\(", block, re.MULTILINE)]
    found += [eval(code) for code in re.findall(r"loss=(dict\(.*\))\)`", PAGE)]
    return scope, [config for number, config in enumerate(found) if config not in found[:number]]


SCOPE, CONFIGS = run()


def test_code() -> None:
    assert SCOPE["value"].isfinite()
    assert SCOPE["embedding"].grad is not None
    assert SCOPE["loss"].centres.grad is not None
    assert SCOPE["logits"].shape == SCOPE["with_margin"].shape == (256, 1000)
    assert float(SCOPE["growing"].margin_of(torch.zeros(1).long())) == pytest.approx(0.5)
    assert SCOPE["by_class"].class_margins.tolist() == pytest.approx([0.5, 0.05 + 0.45 * (2**0.5 - 1), 0.05])
    lines = len(re.findall(r"^\w+ = dict\(", "".join(BLOCKS), re.MULTILINE))
    assert len(CONFIGS) == len(TABLE) + lines + 1  # and all differ


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_losses_of_experiments(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    assert not check("losses", config, where="recipe.loss", provides=LOSS_PROVIDES)
    loss: nn.Module = build("losses", config, embedding_size=8, classes=4, class_counts=COUNTS)
    embedding = torch.randn(16, 8, requires_grad=True)
    value = loss(embedding, torch.arange(16) % 4)
    value.backward()
    assert value.isfinite()
    assert embedding.grad is not None
    assert embedding.grad.abs().sum() > 0


def test_the_table_names_all_losses() -> None:
    ours = {e.name for e in plugins().entries("losses") if e.owner and e.owner.plugin == "models"}
    assert {name.replace("<name>", "*") for name, _ in TABLE} == ours
    for name, code in TABLE:
        assert f'type="{name.partition("<")[0]}' in code
