"""Attention in parts, where what torch fuses has no forward derivative and no batching rule."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


class _Fastpath:
    """Torch's fused transformer layers, one switch of the process: off while anyone needs it off."""

    def __init__(self) -> None:
        self._lock, self._users, self._before = Lock(), 0, True

    @contextmanager
    def off(self) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    torch.backends.mha.set_fastpath_enabled(self._before)


fastpath = _Fastpath()


@contextmanager
def unfused() -> Iterator[None]:
    """Inside, attention and transformer layers are their plain products, in the whole process."""
    with fastpath.off(), sdpa_kernel(SDPBackend.MATH):
        yield
