"""What can go wrong in the mathematics, each as one clear line."""


class InfluenceError(ValueError):
    """What was asked for is not defined for what was given."""


class UnknownBlock(InfluenceError):
    """A block pattern matches nothing in the model."""


class NotPerPoint(InfluenceError):
    """A loss was reduced over the batch, so no point has a gradient of its own."""


class NotFinite(InfluenceError):
    """A loss or gradient is NaN or infinite.

    Attributes:
        block: where it was seen: a block's name, or `loss`.
        row: the point's row in the batch that was given.
    """

    def __init__(self, block: str, row: int) -> None:
        super().__init__(f"{block}: row {row} of the batch is not finite; repair or exclude that point, or retrain")
        self.block = block
        self.row = row
