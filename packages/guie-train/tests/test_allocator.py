"""C's allocator, as the system's counts of pages tell of it, in processes of their own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")

# blocks as large as the activations of a batch: allocated, written and freed, as a model does
COUNTS = """
import os, resource, sys
import numpy as np
from guie_train.allocator import caching_allocator

SIZE, PAGE = 64 << 20, os.sysconf("SC_PAGESIZE")

def again(times=5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        np.ones(SIZE, np.uint8)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * PAGE

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * PAGE

again()
before = resident()
with caching_allocator():
    again(1)
    with caching_allocator():
        again(1)
    within = again()
    held = resident() - before
print(within / SIZE, held / SIZE, (resident() - before) / SIZE, again() / SIZE)
"""


def test_memory_is_cached_within_and_given_back_after() -> None:
    # hugepages would hide how often blocks are mapped
    done = subprocess.run(
        [sys.executable, "-c", COUNTS], capture_output=True, text=True, env={"NUMPY_MADVISE_HUGEPAGE": "0"}
    )
    assert done.returncode == 0, done.stderr
    within, held, after, outside = map(float, done.stdout.split())
    assert within < 0.1  # blocks whose pages were cleared, of five
    assert 0.9 < held < 1.5
    assert after < 0.1
    assert outside > 4.9
