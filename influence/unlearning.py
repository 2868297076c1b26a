"""Influence-approximation unlearning (IAU, arXiv 2507.23257): one step of Adam that corrects the gradient.

The points that are to be forgotten are taken to have been added with the opposite gradient: the step goes down on

    mean loss of the points that stay - mean loss of those that go

Adam's first step is -rate g / (|g| + 1e-8), entry by entry: its length says nothing of how many points go, and the
curvature does not enter. The influence step (`removal`) has both. Of the paper only this step is here, without the
penalty on gradient norms during the training before it.
"""

from influence.factored import Gradients

RATE = 1e-3  # of the published code
EPSILON = 1e-8  # Adam's


def unlearning_step(stay: Gradients, go: Gradients, rate: float = RATE) -> Gradients:
    """What the parameters move by.

    Args:
        stay: gradient of the mean loss of the points that stay, by block.
        go: of those that go; the same blocks.
        rate: of the step.
    """
    corrected = {name: stay[name] - go[name] for name in stay}
    return {name: -rate * gradient / (gradient.abs() + EPSILON) for name, gradient in corrected.items()}
