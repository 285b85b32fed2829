"""Numba decorators used by every kernel here: compiled once, cached on disk, free of the GIL.

The full ``fastmath`` flag is never used: it deletes NaN guards. ``reassoc`` lets LLVM vectorise the
reductions; it is kept off range reduction (it would fold the split constants away) and no
fast-math flag at all is set where finite values are checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

_F = TypeVar("_F", bound=Callable[..., Any])

FAST = {"reassoc", "contract", "nsz", "arcp"}
EXACT_ORDER = {"contract", "nsz", "arcp"}


def kernel(function: _F) -> _F:
    """Compile with reassociation allowed: sums may be reordered, NaN and infinity are honoured."""
    return cast(_F, njit(nogil=True, cache=True, fastmath=FAST)(function))


def ordered_kernel(function: _F) -> _F:
    """Compile with the written order of operations kept (range reduction)."""
    return cast(_F, njit(nogil=True, cache=True, fastmath=EXACT_ORDER)(function))


def strict_kernel(function: _F) -> _F:
    """Compile with no fast-math flag (finite checks, searches)."""
    return cast(_F, njit(nogil=True, cache=True)(function))
