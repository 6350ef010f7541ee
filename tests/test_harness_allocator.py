"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

# Page faults of filling 64 MiB anew, then 32 MiB in memory that is there already.
FAULTS = """
import resource
import torch
from mambalab.harness.allocator import keep_freed_memory

assert keep_freed_memory()

def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(count)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
print(faults(2**24), faults(2**23))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it sets glibc's malloc")
def test_a_tensor_is_made_where_another_was_freed():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert first > 10000
    assert second < first / 100


def test_elsewhere_nothing_happens(monkeypatch):
    from mambalab.harness import allocator

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not allocator.keep_freed_memory()
