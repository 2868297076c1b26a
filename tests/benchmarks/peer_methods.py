"""The rows of the comparison: which methods of which library, and the dampings that are tried for each."""

from __future__ import annotations

from dataclasses import dataclass

WIDE = (0.03, 0.1, 0.01, 0.003, 0.001)
NARROW = (0.03, 0.1, 0.01)
TWO = (0.03, 0.1)  # where a run takes half a minute
NONE = (1.0,)  # a factor, which changes no rank


@dataclass(frozen=True)
class Row:
    """One method of one library.

    Attributes:
        library: names the module, `peer_<library>`.
        method: key of its `METHODS`.
        dampings: that are tried, the first when time and memory are taken.
        models: how many of the seeds are scored.
        said: what the page says of its settings.
    """

    library: str
    method: str
    dampings: tuple[float, ...]
    models: int = 5
    said: str = ""


LIBRARIES = {"ours": "Tamis", "kronfluence": "kronfluence", "pydvl": "pyDVL", "captum": "captum", "dattri": "dattri"}
REFERENCE = Row("ours", "PCG", NARROW, said="tolerance 1e-6, exact Fisher")
ROWS = (
    Row("ours", "gradient dot", NONE),
    Row("ours", "gradient dot, 4 checkpoints", NONE),
    Row("ours", "EK-FAC", WIDE, said="exact Fisher"),
    Row("ours", "dual GGN", NARROW, said="exact Fisher; .001 of the trace left out"),
    REFERENCE,
    Row("ours", "Arnoldi, rank 50, published form", NARROW, said="exact Fisher; 200 iterations"),
    Row("ours", "Arnoldi, rank 50, with the complement", NARROW, said="exact Fisher; 200 iterations"),
    Row("ours", "LiSSA", TWO, said="exact Fisher; 200 steps of all points"),
    Row("ours", "DataInf", WIDE, said="exact Fisher, layer by layer, inverse moved inside the mean"),
    Row("ours", "diagonal", WIDE, said="exact Fisher"),
    Row("kronfluence", "EK-FAC", WIDE, said="one sampled label a point"),
    Row("kronfluence", "K-FAC", WIDE, said="one sampled label a point"),
    Row("pydvl", "EK-FAC", WIDE, said="its Fisher is its own, one backward a point"),
    Row("pydvl", "Nystroem, rank 50", WIDE, said="Hessian"),
    Row("pydvl", "CG", TWO, said="Hessian; all queries together, relative tolerance 1e-3, at most 200 iterations"),
    Row("pydvl", "Arnoldi, rank 50", TWO, said="Hessian; its default, 0 outside of the 50 directions"),
    Row("pydvl", "Arnoldi, rank 50, with the complement", TWO, said="Hessian; `use_woodbury`"),
    Row("pydvl", "LiSSA", TWO, said="Hessian; 200 steps of 50 points, scale 20"),
    Row("pydvl", "direct", (0.03,), models=1, said="Hessian in memory; one model"),
    Row("captum", "TracInCPFast, 4 checkpoints", NONE, said="last layer only"),
    Row("captum", "TracInCP, 4 checkpoints", NONE),
    Row("captum", "Arnoldi, rank 50", TWO, said="Hessian; 200 iterations, 50 directions"),
    Row("captum", "naive", (0.03,), models=1, said="Hessian in memory, all eigenvalues; one model"),
    Row("dattri", "CG", TWO, said="Hessian; 20 iterations, 25 queries at a time"),
    Row(
        "dattri",
        "LiSSA",
        TWO,
        said="Hessian; 200 steps of 10 points, scale 20, 25 queries at a time",
    ),
    Row("dattri", "Arnoldi, rank 50", TWO, said="Hessian; 200 iterations, 50 directions"),
    Row("dattri", "DataInf", TWO, said="layer by layer, inverse moved inside the mean"),
    Row("dattri", "EK-FAC", WIDE, said="empirical Fisher"),
    Row("dattri", "TracIn, 4 checkpoints", NONE, said="projected to 512 dimensions"),
    Row("dattri", "TRAK, 512 dimensions", WIDE, said="one checkpoint; damping brought to the scale of its kernel"),
    Row("dattri", "explicit", (0.03,), models=1, said="Hessian in memory; one model"),
)
