"""How many processors there are for this process, and so how many threads pay."""

from __future__ import annotations

import os

from guie_core.errors import UsageError

CPUINFO = "/proc/cpuinfo"


def processors() -> int:
    """Those that this process may run on; `taskset`, batch systems and containers may allow it fewer than there are."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def multiplies_bfloat16() -> bool:
    """Whether these have instructions for products in bfloat16 (AVX-512 BF16, AMX, ARM's), as far as Linux says."""
    try:
        with open(CPUINFO, encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.split())


def threads(asked: int | None = None, *, most: int = 8) -> int:
    """How many threads to work with: as many as asked for; by default one a processor, at most `most`.

    Raises UsageError for fewer than one.
    """
    if asked is None:
        return min(most, processors())
    if asked < 1:
        raise UsageError(f"workers is {asked}; it is the number of threads, 1 or more")
    return asked
