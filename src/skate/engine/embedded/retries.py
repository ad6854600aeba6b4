"""The types of errors after which a call is tried again, on their way to its worker."""

from __future__ import annotations

import contextlib
import functools
import pickle

from .. import serialize


@functools.lru_cache(maxsize=64)
def pack_types(kinds: tuple[type[Exception], ...]) -> bytes:
    """By value where other processes could not import them."""
    packed = [serialize.dumps(kind) for kind in kinds]
    # What the classes hold, such as arrays, goes with them: protocol 5 copies it.
    return pickle.dumps([(kind.header, kind.buffers) for kind in packed], 5)


def unpack_types(packed: bytes) -> tuple[type[Exception], ...]:
    """Those that can be loaded here: code that runs here can raise no others."""
    kinds: list[type[Exception]] = []
    for header, buffers in pickle.loads(packed):
        with contextlib.suppress(Exception):  # its module may be the caller's alone
            kinds.append(serialize.loads(header, buffers))
    return tuple(kinds)
