"""The host process."""

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
HEAP = 64 * 2**20  # of a thread; half of it is the largest mmap threshold that glibc documents


def keep_freed_memory() -> None:
    """Tells glibc to keep the memory that is freed instead of handing it back to the system at once.

    On CPU every operation of a step allocates its result; handed back and asked for again, the pages cost more than the
    arithmetic of a small model. The process keeps its largest size until it ends. Where the C library is another,
    nothing is done.
    """
    libc = ctypes.CDLL(None)  # what the process is linked with
    if hasattr(libc, "mallopt"):
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(TOP_PAD, HEAP)  # without it a thread's heap that becomes empty is handed back whole
        libc.mallopt(MMAP_THRESHOLD, HEAP // 2)
