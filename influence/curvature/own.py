"""Own terms of a curvature that has no cheaper way to them than solving for every point."""

from influence.curvature.base import Curvature, Own
from influence.curvature.joint import Joint
from influence.factored import Factors


def own_by_solving(curvature: Curvature, joint: Joint, factors: Factors, *, step: bool) -> Own:
    """The own terms of B points; as costly as solving for B queries."""
    parts = []
    for full in joint.by_runs(factors):  # [b, p]
        moved = joint.join(curvature.solve(joint.split(full)))
        parts.append(Own((full * moved).sum(1), moved.square().sum(1) if step else None))
    return Own.join(parts)
