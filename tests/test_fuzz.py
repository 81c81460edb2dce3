"""Every fuzz target starts, takes its seeds, and survives a thousand inputs made from them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in FUZZ.glob("fuzz_*.py"))


def test_every_parser_has_a_target_and_every_target_seeds() -> None:
    assert {"archives", "decoding", "tables", "tfrecord", "webdataset"} <= set(TARGETS)
    assert sorted(path.name for path in (FUZZ / "seeds").iterdir()) == TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str, tmp_path: Path) -> None:
    seeds = FUZZ / "seeds" / name
    # the same inputs each time; the seed of libFuzzer's own choices is 1
    command = [sys.executable, str(FUZZ / f"fuzz_{name}.py"), str(tmp_path), str(seeds), "-runs=1000", "-seed=1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 1000 runs" in done.stderr, done.stderr[-3000:]
    assert not list(tmp_path.glob("crash-*"))
