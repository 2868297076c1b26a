"""The rows of the comparison: which methods of which library, and the dampings that are tried for each."""

from __future__ import annotations

from dataclasses import dataclass

LAYERS = (0.003, 0.01, 0.001)  # where every layer is inverted on its own
TOGETHER = (0.03, 0.1, 0.01)
ALONE = (0.03,)  # where a run takes long, or only eigenvalues are inverted beside which damping is small
NONE = (1.0,)  # a factor, which changes no rank


@dataclass(frozen=True)
class Row:
    """One method of one library.

    Attributes:
        library: names the module, `peer_<library>`.
        method: key of its `METHODS`.
        said: what the page says of its settings.
        dampings: that are tried, the first when memory is taken.
    """

    library: str
    method: str
    said: str
    dampings: tuple[float, ...]


LIBRARIES = {"ours": "Tamis", "kronfluence": "kronfluence", "pydvl": "pyDVL", "captum": "captum", "dattri": "dattri"}
LEFT_OUT = ("LiSSA", "DataInf", "diagonal")
"""Of ours: those that are in tests/left_out, and not in the package."""
REFERENCE = Row("ours", "PCG", "exact Fisher; tolerance 1e-6", TOGETHER)
ROWS = (
    Row("ours", "gradient dot", "", NONE),
    Row("ours", "gradient dot, 4 checkpoints", "", NONE),
    Row("ours", "EK-FAC", "exact Fisher", LAYERS),
    Row("ours", "dual GGN", "exact Fisher; .001 of the trace left out", TOGETHER),
    REFERENCE,
    Row("ours", "Arnoldi, rank 50, published form", "exact Fisher; 200 iterations", ALONE),
    Row("ours", "Arnoldi, rank 50, with the complement", "exact Fisher; 200 iterations", TOGETHER),
    Row("ours", "LiSSA", "exact Fisher; 200 steps of all points", ALONE),
    Row("ours", "DataInf", "exact Fisher; the inverse of every point's, averaged", ALONE),
    Row("ours", "diagonal", "exact Fisher", LAYERS),
    Row("kronfluence", "EK-FAC", "one sampled label a point", LAYERS),
    Row("pydvl", "EK-FAC", "its own Fisher, one backward a point", LAYERS),
    Row("pydvl", "Nystroem, rank 50", "Hessian", TOGETHER),
    Row("pydvl", "CG", "Hessian; all queries together, tolerance 1e-3, at most 200 iterations", TOGETHER),
    Row("pydvl", "Arnoldi, rank 50", "Hessian; its default, 0 outside of the 50 directions", ALONE),
    Row("pydvl", "Arnoldi, rank 50, with the complement", "Hessian; `use_woodbury`", TOGETHER),
    Row("pydvl", "LiSSA", "Hessian; 200 steps of 50 points, scale 20", ALONE),
    Row("pydvl", "direct", "Hessian in memory: 11 GB for 52,650 parameters", ALONE),
    Row("captum", "TracInCPFast, 4 checkpoints", "last layer only", NONE),
    Row("captum", "TracInCP, 4 checkpoints", "", NONE),
    Row("captum", "Arnoldi, rank 50", "Hessian; 200 iterations, 50 directions", ALONE),
    Row("captum", "naive", "Hessian in memory: 11 GB for 52,650 parameters", ALONE),
    Row("dattri", "CG", "Hessian; 20 iterations, 25 queries at a time", TOGETHER),
    Row("dattri", "LiSSA", "Hessian; 200 steps of 10 points, scale 20, 25 queries at a time", ALONE),
    Row("dattri", "Arnoldi, rank 50", "Hessian; 200 iterations, 50 directions", ALONE),
    Row("dattri", "DataInf", "empirical Fisher; the inverse of every point's, averaged", ALONE),
    Row("dattri", "EK-FAC", "empirical Fisher", LAYERS),
    Row("dattri", "TracIn, 4 checkpoints", "projected to 512 dimensions", NONE),
    Row("dattri", "TRAK, 512 dimensions", "one checkpoint; damping brought to the scale of its kernel", TOGETHER),
    Row("dattri", "explicit", "Hessian in memory: 11 GB for 52,650 parameters", ALONE),
)
