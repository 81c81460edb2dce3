"""Threads follow what the process may use, not what the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import guie_core.processors
from guie_core import UsageError
from guie_core.processors import multiplies_bfloat16, processors, threads


def test_affinity_counts() -> None:
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from guie_core.processors import processors, threads\nprint(processors(), threads(), threads(3))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["1", "1", "3"]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16 amx_tile\nflags : fpu\n", True),
        ("flags : fpu avx512f avx512_vnni\n", False),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("", False),
    ],
)
def test_bfloat16_by_what_linux_says(
    told: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(told)
    monkeypatch.setattr(guie_core.processors, "CPUINFO", file)
    assert multiplies_bfloat16() == expected
    file.unlink()
    assert not multiplies_bfloat16()


def test_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert (processors(), threads()) == (5, 5)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processors() == 1


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert (threads(), threads(most=16), threads(1), threads(100)) == (8, 16, 1, 100)
    for number in (0, -1):
        with pytest.raises(UsageError, match=f"workers is {number}; it is the number of threads, 1 or more"):
            threads(number)
