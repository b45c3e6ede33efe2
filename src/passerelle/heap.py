"""How the C library keeps memory that large documents gave back."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of `mallopt`'s settings in glibc's malloc.h."""
_LARGE_BYTES = 1024 * 1024
_KEPT_BYTES = 4 * 1024 * 1024


def return_large_blocks() -> None:
    """Makes blocks of a mebibyte and more go back to the system when they are freed.

    glibc raises that bound to the size of the largest block ever freed, up to 32 MiB: after one large document, the
    next ones are put between small objects, and a process keeps several times their size. Other C libraries have no
    such setting and need none.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
