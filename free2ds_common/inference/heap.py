"""When the C library's heap gives freed memory back to the system."""

import ctypes
import os
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAX_INT = 2**31 - 1


class FreedMemory:
    """Keeps freed memory in the process for the next arrays, up to a limit. Without glibc it does nothing.

    On a CPU, a model's passes free and allocate the same tens of MB again and again; by default glibc returns them to
    the system each time. Keeping all of it does not work either, since passes of different sizes leave gaps that
    nothing fits into: over 196 passes of about 4,096 tokens, no two of the same length, the process grew to 2.0 GB.
    """

    def __init__(self, max_bytes: int) -> None:
        """Change the heap's settings, for the whole process.

        Args:
            max_bytes: How much the process may grow before freed memory is given back.
        """
        self._libc = ctypes.CDLL(None)
        self._max_bytes, self._kept = max_bytes, resident_bytes()
        if hasattr(self._libc, "mallopt"):
            self._libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            self._libc.mallopt(_M_TRIM_THRESHOLD, _MAX_INT)

    def limit(self) -> None:
        """Give free memory back to the system if the process has grown by more than the limit since the last time."""
        if hasattr(self._libc, "malloc_trim") and resident_bytes() - self._kept > self._max_bytes:
            self._libc.malloc_trim(0)
            self._kept = resident_bytes()


def resident_bytes() -> int:
    """Memory of this process in bytes, from Linux's /proc; 0 on other systems."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", encoding="ascii") as handle:
        return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
