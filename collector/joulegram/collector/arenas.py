"""The C library's heaps, of which a collector wants few."""

import ctypes

M_ARENA_MAX = -8  # malloc.h of the GNU C library
ARENAS = 2


def few_arenas() -> bool:
    """Let threads share heaps; call it before any starts. False where the C library has no arenas.

    By default glibc gives threads up to eight heaps a core, and what one of them freed no other
    can use. Commits, merges and roll-ups run on threads of their own, one after another, so the
    process would keep the peak of each.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl, say
        return False
    return bool(mallopt(M_ARENA_MAX, ARENAS))
