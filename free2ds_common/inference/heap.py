"""The C library's heap, where large arrays come and go."""

import ctypes
import os
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_INT = 2**31 - 1


class FreedMemory:
    """Freed memory stays in the process for the next arrays, within a limit; in glibc only, else this does nothing.

    A model's passes on a CPU free and need the same tens of MB again and again. By default glibc takes and returns them
    each time. But passes of ever other sizes leave gaps that none fits into: 196 passes of about 4,096 tokens, each of
    another length, grew to 2.0 GB.
    """

    def __init__(self, most: int) -> None:
        """Change the heap's settings, for the whole process.

        Args:
            most: Bytes by which the process may grow before freed memory is given back.
        """
        self._libc = ctypes.CDLL(None)
        self._most, self._kept = most, resident_bytes()
        if hasattr(self._libc, "mallopt"):
            self._libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            self._libc.mallopt(_M_TRIM_THRESHOLD, _MOST_INT)

    def limit(self) -> None:
        """Give what is free in the heap back to the system if the process has grown too much since it was last done."""
        if hasattr(self._libc, "malloc_trim") and resident_bytes() - self._kept > self._most:
            self._libc.malloc_trim(0)
            self._kept = resident_bytes()


def resident_bytes() -> int:
    """Bytes of this process in memory; 0 where that cannot be asked (it is read from Linux's /proc)."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", encoding="ascii") as handle:
        return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
