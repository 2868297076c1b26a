"""Turn-over dropout: every point trains a half of the network of its own; the other half never saw it.

Kobayashi et al. 2020 (arXiv 2012.04207). In training, each point passes chosen layers through a mask that is fixed by
its key: half of the units are off, those that are on count double. Afterwards the flipped mask is a sub-network whose
masked layers the point never moved, and

    I[i, q] = loss(q; flipped mask of i) - loss(q; mask of i)

is the rise of the query's loss without the point: positive = helpful, nats, two forward passes, no gradient. Weights
that touch no masked unit, such as the last bias, saw all points. One model is noisy: average several, by seed.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from influence.errors import InfluenceError, UnknownBlock
from influence.fisher import uniforms
from influence.reading import Batch, Task
from influence.refusals import refuse_compiled, refuse_training
from influence.tokens import point_losses
from influence.unfused import unfused

KEEP = 0.5  # the share at which a mask and its flip are alike
ROWS = 1 << 12  # rows, points times queries, that go through the model at a time
CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d


def kept_units(keys: Tensor, layer: str, units: int, seed: int) -> Tensor:
    """Which units of a layer are on for each point, [B, units], bool: of its key, the layer's name and the seed alone.

    Args:
        keys: one integer per point, [B], int64.
        layer: its name in the model.
        units: how many it has.
        seed: of the family of masks.
    """
    digest = hashlib.sha256(f"{seed} {layer}".encode()).digest()
    return uniforms(keys, units, int.from_bytes(digest[:8], "little", signed=True)).T < KEEP


class TurnOver:
    """Masks of points on the outputs of a model's layers.

        turnover = TurnOver(model, ["encoder.0"], seed=0)
        with turnover.own(keys):  # around the backward pass, too: activation checkpoints run the layers again
            loss(model, batch).mean().backward()

    Args:
        model: as it is outside `own` and `flipped`; its hooks are there only inside.
        layers: names of modules whose outputs have the points first and the units last, or, of a convolution, second;
            without any, every sub-network is the whole model.
        seed: of the family of masks.

    Raises:
        UnknownBlock: the model has no such layer.
        InfluenceError: the model is compiled.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], seed: int) -> None:
        if layers:
            refuse_compiled(model)
        known = dict(model.named_modules())
        if missing := [name for name in layers if name not in known]:
            raise UnknownBlock(f"turn-over layer {missing[0]!r}: the model has {_names(known)}")
        self._layers = {name: known[name] for name in layers}
        self._seed = seed

    def own(self, keys: Tensor) -> AbstractContextManager[None]:
        """Inside, row b passes through the mask of keys[b]: the sub-network that the point trains.

        Args:
            keys: one integer per row, [B], int64; or one for all rows, [].
        """
        return self._masked(keys, flipped=False)

    def flipped(self, keys: Tensor) -> AbstractContextManager[None]:
        """Inside, row b passes through the flipped mask: the sub-network that the point never trained."""
        return self._masked(keys, flipped=True)

    @contextmanager
    def _masked(self, keys: Tensor, *, flipped: bool) -> Iterator[None]:
        uncalled = set(self._layers)

        def hook_of(name: str) -> Any:
            def hook(module: nn.Module, given: Any, output: Any) -> Tensor:
                uncalled.discard(name)
                channels = _channels(name, module, output, keys)
                units = output.shape[channels]
                on = kept_units(keys.reshape(-1), name, units, self._seed) ^ flipped  # [B, units]
                shape = [len(on), *(1 for _ in output.shape[1:])]
                shape[channels] = units
                masked: Tensor = output * (on.to(output.device, output.dtype) / KEEP).view(shape)
                return masked

            return hook

        with ExitStack() as undo:
            for name, module in self._layers.items():
                undo.callback(module.register_forward_hook(hook_of(name)).remove)
            yield
        if uncalled:
            raise InfluenceError(f"turn-over layer {min(uncalled)!r} is not called in the forward pass; name others")


def turn_over_influence(
    model: nn.Module,
    task: Task[Batch],
    layers: Sequence[str],
    keys: Tensor,
    queries: Iterable[Batch],
    seed: int,
) -> Tensor:
    """Influence of each train point on each query; layers below the first mask run once for all points.

    Args:
        model: trained with the masks of `TurnOver(model, layers, seed)`; in evaluation mode.
        task: how it is asked.
        layers: as in training.
        keys: of the train points, as in training, [n], int64.
        queries: batches of the queries.
        seed: as in training.

    Returns:
        Nats of query loss, positive = helpful, [n, m].
    """
    refuse_training(model)
    turnover = TurnOver(model, layers, seed)

    def of_batch(batch: Batch) -> Tensor:
        chunk = max(1, ROWS // len(task.labels(batch)))
        rises: Tensor = vmap(lambda key: _rises(turnover, model, task, key, batch), chunk_size=chunk)(keys)
        return rises

    with torch.no_grad(), unfused():
        found = [of_batch(batch) for batch in queries]
    if not found or not len(keys):
        raise InfluenceError(f"{len(keys)} train points and {len(found)} batches of queries: give at least one of each")
    return torch.cat(found, 1)


def turn_over_self_influence(
    model: nn.Module, task: Task[Batch], layers: Sequence[str], keys: Tensor, points: Iterable[Batch], seed: int
) -> Tensor:
    """Influence of each train point on itself, nats, [n].

    Args:
        model: as for `turn_over_influence`, like what is not told here.
        task: how it is asked.
        layers: as in training.
        keys: [n].
        points: batches of the same n points, in their order.
        seed: as in training.
    """
    refuse_training(model)
    turnover, found, seen = TurnOver(model, layers, seed), [], 0
    with torch.no_grad(), unfused():
        for batch in points:
            rows = slice(seen, seen + len(task.labels(batch)))
            found.append(_rises(turnover, model, task, keys[rows], batch))
            seen = rows.stop
    if seen != len(keys):
        raise InfluenceError(f"{seen} points read, {len(keys)} keys given; give one key for each point")
    return torch.cat(found)


def _rises(turnover: TurnOver, model: nn.Module, task: Task[Batch], keys: Tensor, batch: Batch) -> Tensor:
    """Of the losses of a batch from the own to the flipped masks, [B]."""
    labels = task.labels(batch)
    with turnover.own(keys):
        seen = point_losses(task.logits(model, batch), labels)
    with turnover.flipped(keys):
        unseen = point_losses(task.logits(model, batch), labels)
    return unseen - seen


def _channels(name: str, module: nn.Module, output: Any, keys: Tensor) -> int:
    """The dimension of the units in what a layer returned."""
    convolution = isinstance(module, CONVOLUTIONS)
    if not isinstance(output, Tensor) or not (convolution or 2 <= output.ndim <= 3):
        kind = f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise InfluenceError(
            f"turn-over layer {name!r} returned {kind}: name a convolution, or a layer that gives [points, units] or "
            "[points, positions, units]"
        )
    if keys.ndim and len(keys) != len(output):
        raise InfluenceError(
            f"turn-over layer {name!r} returned {len(output)} rows, given {len(keys)} keys: give one each"
        )
    return 1 if convolution else output.ndim - 1


def _names(known: dict[str, nn.Module]) -> str:
    names = [name for name in known if name]
    return ", ".join(names[:8]) + ", …" * (len(names) > 8)
