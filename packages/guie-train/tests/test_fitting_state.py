"""Fit.save: a state goes to the disk without a copy of it in memory, and what the disk says of it is told."""

from __future__ import annotations

import errno
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guie_core import GuieError
from guie_train.fitting import Fit, Resident, Training
from guie_train.fitting.state import save_state


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(256, 256) for _ in range(16)))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.layers(features), labels)


def test_no_copy_of_the_state_is_made(tmp_path: Path) -> None:
    examples = Resident(torch.randn(8, 256), torch.arange(8))
    training = Training(epochs=1, batch_size=8, optimizer={"type": "AdamW", "lr": 1e-3})
    fit = Fit(Wide(), examples, training, seed=0, folder=tmp_path, name="head")
    fit._step(*next(iter(examples.batches(0, [torch.arange(8)]))))
    fit.save()
    tracemalloc.start()
    try:
        fit.save()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = (tmp_path / "state.pt").stat().st_size
    assert size > 3 * 4 * 16 * 256 * 256
    assert peak < size / 8


@pytest.mark.parametrize("bytes_before", [0, 1000, 500_000])
def test_what_the_disk_says_is_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_before: int) -> None:
    save_state({"a": torch.arange(3)}, tmp_path / "state.pt")
    written = 0

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: Any) -> int:
            nonlocal written
            written += len(data)
            if written > bytes_before:
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self.file.write(data))

    from guie_train.fitting import state as on_disk

    told = on_disk._Remembering
    monkeypatch.setattr(on_disk, "_Remembering", lambda file: told(Full(file)))
    with pytest.raises(GuieError, match=r"The disk is full: .*state\.pt could not be written"):
        save_state({"a": torch.zeros(200_000)}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["a"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
