"""Models that cannot be read as they are."""

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from influence.blocks import Block
from influence.errors import InfluenceError
from influence.layouts import TableLayout
from influence.sparse import HELD_BY_ROWS


def refuse_compiled(model: nn.Module) -> None:
    """Raise InfluenceError if the model, or a module in it, is compiled: it would not call its hooks."""
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise InfluenceError(
                f"{name or 'the model'} is compiled, and a compiled module does not call its hooks; give the model as "
                "it was before torch.compile (it shares the weights)"
            )


def refuse_batch_statistics(model: nn.Module) -> None:
    """Raise InfluenceError if a module normalises over the batch in evaluation mode, too: no point is then alone."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise InfluenceError(
                f"{name or 'the model'} is a {type(module).__name__} without running statistics, so that the points of "
                "a batch interact and none has a gradient of its own"
            )


def refuse_tables(blocks: Iterable[Block]) -> None:
    """Raise InfluenceError if a block is a table that is held by rows, for what takes gradients in full."""
    for block in blocks:
        if isinstance(block.layout, TableLayout):
            raise InfluenceError(f"block {block.name!r}: {HELD_BY_ROWS.format(block.weight_shape[1])}")


def refuse_training(model: nn.Module) -> None:
    """Raise InfluenceError if a module is in training mode: points may interact, and dropout draws anew every time."""
    if any(module.training for module in model.modules()):
        raise InfluenceError("the model is in training mode, so points may interact; call eval() on it")
