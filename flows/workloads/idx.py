"""IDX, the file format of the MNIST family: a header (0, 0, type, rank, then big-endian sizes), then the values."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from flows.errors import BadInput

BYTES = b"\0\0\x08"  # the type: unsigned bytes


def read_idx(path: Path) -> Tensor:
    """Read a gzipped file of unsigned bytes whole.

    Raises:
        BadInput: The file is not gzip, not IDX or cut short.
    """
    try:
        with gzip.open(path) as file:
            raw = bytearray(file.read())
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path}: not a whole gzip file ({error}): install it again") from error
    if raw[:3] != BYTES or len(raw) < (start := 4 + 4 * raw[3]):
        raise BadInput(f"{path}: not an IDX file of unsigned bytes: install it again")
    shape = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4)]
    size = len(raw) - start
    if not size or size != math.prod(shape):
        raise BadInput(f"{path}: {size:,} bytes for the shape {shape}: install it again")
    return torch.frombuffer(raw, dtype=torch.uint8, offset=start).view(shape)
