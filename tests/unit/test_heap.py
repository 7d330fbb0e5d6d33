"""Memory that is freed on a CPU: kept for the next tensor, and given back on request."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from textwrap import dedent

import pytest
import torch

from altclip_train import heap
from altclip_train.heap import give_back_freed_memory, keep_freed_memory

pytestmark = pytest.mark.skipif(heap._glibc() is None, reason="another C library than glibc is left as it is")


def printed(code: str) -> list[float]:
    """Numbers that a fresh process prints: what is set cannot be taken back."""
    before = "import resource, torch\nfrom pathlib import Path\nfrom altclip_train.heap import *\n"
    result = subprocess.run([sys.executable, "-c", before + dedent(code)], capture_output=True, text=True, check=True)
    return [float(line) for line in result.stdout.split()]


@pytest.mark.parametrize("kept", [True, False])
def test_a_tensor_gets_the_pages_of_the_one_before(kept: bool):
    (faults,) = printed(f"""
        keep_freed_memory("cpu") if {kept} else None
        for number in range(30):
            x = torch.ones(10_000_000)  # 40 MB: 9,766 pages
            del x
            if number == 19:  # the first ones leave splinters between them, which are put together later
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """)
    assert faults < 1000 if kept else faults > 10_000


def test_what_is_kept_is_given_back():
    whole, kept, given_back = printed("""
        def resident():
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))

        keep_freed_memory("cpu")
        x = [torch.ones(1_000_000) for _ in range(50)]  # 200 MB
        print(resident())
        del x
        print(resident())
        give_back_freed_memory()
        print(resident())
    """)
    assert kept > whole - 20_000
    assert given_back < kept - 150_000


class Libc:
    """As glibc before 2.35, which refuses a threshold of more than 32 MB; `musl` has neither function."""

    def __init__(self, musl=False):
        self.set = {}
        if not musl:
            self.gnu_get_libc_version = lambda: b"2.31"
            self.mallopt = self._mallopt

    def _mallopt(self, option, value):
        if option == heap.M_MMAP_THRESHOLD and value > 32 << 20:
            return 0
        self.set[option] = value
        return 1


def test_an_old_glibc_gets_the_largest_threshold_that_it_takes(monkeypatch):
    libc = Libc()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    keep_freed_memory("cuda")
    assert not libc.set
    keep_freed_memory(torch.device("cpu"))
    assert libc.set == {heap.M_MMAP_THRESHOLD: 32 << 20, heap.M_TRIM_THRESHOLD: heap.NEVER}


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_another_c_library_is_left_alone(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Libc(musl=platform == "linux"))
    assert heap._glibc() is None
    keep_freed_memory("cpu")
    give_back_freed_memory()
