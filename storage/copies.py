"""Exact copies: points of training that hold what another point of training holds, told by the hashes of a manifest.

A copy has the inputs, the label in force and the group of a point before it. Where points of the same inputs carry
different labels, none of them is a copy: one label is wrong, and how often each is given is the evidence for which.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.points import Manifest


def originals(manifest: Manifest, labels: NDArray[np.int64], in_train: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of each point the place of the first point of training that it repeats, -1 if none; places are the manifest's.

    A point out of training repeats one in training, never the other way round.

    Args:
        manifest: In the order of ids, so that the first is the one of the smallest id.
        labels: In force, [n].
        in_train: Whether each point is trained on, [n].
    """
    table, places = manifest.table, np.arange(len(manifest))
    inputs = _codes(table["inputs"])
    grouped = _codes(pa.chunked_array([pa.array(inputs * (len(manifest) + 1) + _codes(table["group"]))]))
    disputed = _disputed(inputs, labels, in_train)
    first = np.full(len(manifest), len(manifest))
    np.minimum.at(first, grouped[in_train], places[in_train])
    original = first[grouped]
    known = original < len(manifest)
    known &= (original != places) & ~disputed & (labels == labels[np.where(known, original, 0)])
    return np.where(known, original, -1)


def _disputed(inputs: NDArray[np.int64], labels: NDArray[np.int64], in_train: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether points of training with the inputs of each point carry more than one label."""
    lowest = np.full(len(inputs), np.iinfo(np.int64).max)
    highest = np.full(len(inputs), np.iinfo(np.int64).min)
    np.minimum.at(lowest, inputs[in_train], labels[in_train])
    np.maximum.at(highest, inputs[in_train], labels[in_train])
    return (lowest < highest)[inputs]


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number from 0 for every value, one of its own for null."""
    codes: NDArray[np.int64] = column.combine_chunks().dictionary_encode("encode").indices.to_numpy().astype(np.int64)
    return codes
