"""Whether several looks at the same point agree: a sign that only one checkpoint shows is no ground for a decision."""

from torch import Tensor


def sign_agreement(influences: Tensor) -> Tensor:
    """Share of the looks whose sign is that of their sum; a look of 0 agrees with a sum of 0 alone.

    Args:
        influences: of n points at each of k checkpoints (seeds, masks), [k, n].

    Returns:
        [n], in [0, 1], float64; 1 where there is but one look.
    """
    return (influences.sign() == influences.sum(0).sign()).double().mean(0)
