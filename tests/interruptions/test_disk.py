"""Disks that are full, read-only or damaged: one message, nothing is lost, and the run ends with the same bits."""

from __future__ import annotations

import errno
import itertools
import os
import re
import subprocess
from pathlib import Path

import pytest

from .chain import ALL, PLACES, Chain
from .faults import Action, Fault, Outcome

FULL = "The disk is full|Your disk quota is used up|The file is larger than this system allows"
REFUSED = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "Your disk quota is used up",
    errno.EROFS: "The disk is read-only",
    errno.EACCES: "Permission is denied",
}


def check_told(refused: Outcome, folder: Path, words: str = FULL) -> None:
    """The last lines say what could not be written, that nothing is lost, and what to do."""
    assert refused.code == 1, refused
    message = refused.err[refused.err.rindex("error: ") :]
    assert re.match(rf"error: ({words}): {re.escape(str(folder))}\S* could not be written\.", message), refused
    assert "Nothing that was complete is lost. " in message
    assert "(--work-dir)" in message
    assert "run the same command again." in message
    assert "Traceback" not in refused.err


@pytest.mark.parametrize("action", ["no room", "refuse"])
def test_in_every_stage(action: Action, chain: Chain, work_dir: Path) -> None:
    numbers = itertools.cycle(REFUSED if action == "refuse" else (errno.ENOSPC, errno.EDQUOT))
    for within, moment in PLACES:
        number = next(numbers)
        refused = chain.run(work_dir, Fault(action, moment, within, number=number))
        assert refused.failed, (within, refused)
        check_told(refused, work_dir.parent, FULL if action == "no room" else REFUSED[number])
    chain.check_finishes(work_dir)


def test_damaged_outputs(chain: Chain, work_dir: Path) -> None:
    """Half of a file is told as that, whichever file it is, and by which command it is made again."""
    chain.check_finishes(work_dir)
    files = sorted(path for path in (work_dir.parent / "store").rglob("*") if path.stat().st_size and path.suffix)
    for path in files[:: 1 if ALL else 9]:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        found = chain.run(work_dir)
        assert found.code in (0, 1), f"{path}: {found}"
        assert "This is a fault in" not in found.err, f"{path}: {found}"
        if found.code:
            assert str(path.parent) in found.err, f"{path}: {found}"
        path.write_bytes(whole)
    chain.check_finishes(work_dir)


def test_a_folder_that_cannot_be_made(chain: Chain, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        work_dir = Path("/proc/guie/runs")  # which not even root can make
    else:
        tmp_path.chmod(0o500)
        work_dir = tmp_path / "runs"
    refused = chain.run(work_dir)
    assert refused.code == 1
    assert refused.err.startswith("error: ")
    assert "--work-dir" in refused.err
    assert "Traceback" not in refused.err


def test_a_really_full_disk(chain: Chain, tmp_path: Path) -> None:
    """Of a disk that grows, each size is too small for something else, and libraries write to it in their own ways."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        work_dir = tmp_path / "runs" / "small"
        kilobytes = 64
        times = 0
        while (done := chain.run(work_dir)).code:
            check_told(done, tmp_path, "The disk is full")
            times += 1
            kilobytes = kilobytes + 16 if ALL else kilobytes * 3
            subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(tmp_path)], check=True)
        assert times >= 3
        chain.check_finishes(work_dir)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
