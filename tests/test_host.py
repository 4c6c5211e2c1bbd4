"""Freed memory is kept: what is allocated anew needs no new pages from the system."""

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from jaxsft.host import keep_freed_memory
    keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def touch():
    arrays = [np.ones(150_000, np.float32) for _ in range(8)]
touch()
before = faults()
for _ in range(20):
    touch()
print(faults() - before)
"""


def test_memory_that_was_freed_is_used_again_without_page_faults():
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("the C library has no mallopt")
    run = lambda how: subprocess.run(
        [sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True, timeout=60
    )
    kept, plain = (int(run(how).stdout) for how in ("keep", "plain"))
    assert kept < 200, "20 rounds of 4.8 MB are 23,000 pages"
    assert plain > 10 * kept, "without it they are handed back each time"
