import subprocess
import sys

import pytest

# Frees a large block and looks whether the kernel got it back.
SCRIPT = """
import ctypes, sys
from free2ds_common.inference.heap import FreedMemory
freed = None if sys.argv[1] == "default" else FreedMemory(int(sys.argv[1]) << 20)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
size = 64 << 20
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
block = libc.malloc(size)
ctypes.memset(ctypes.c_void_p(block), 1, size)
before = resident()
libc.free(block)
if freed:
    freed.limit()
print(before - resident() > size // 2)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap")
@pytest.mark.parametrize(("how", "given_back"), [("default", "True"), ("128", "False"), ("32", "True")])
def test_freed_memory_stays_within_the_limit(how, given_back):
    ran = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == given_back
