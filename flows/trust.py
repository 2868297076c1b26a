"""What is known of the choice of blocks, in words: how much of the model they are, and whether they can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

from influence import Agreement, BlockSummary

TRUSTED = 0.9  # rank correlation of pairs, our choice
NAMED = 6


@dataclass(frozen=True)
class Probe:
    """A few pairs that were scored again by exact Gauss-Newton, at the last checkpoint.

    Attributes:
        points: Train points in the probe.
        queries: Queries in it, beside the mean of all.
        curvature_points: Train points that the exact matrix is the mean of.
        parameters: That are trained, all of them in the truth.
        damping: Of the exact matrix.
        blocks: Exact Gauss-Newton on the blocks against that on all parameters: what the choice of blocks costs.
        estimator: The configured estimator on the blocks against exact Gauss-Newton on all parameters.
    """

    points: int
    queries: int
    curvature_points: int
    parameters: int
    damping: float
    blocks: Agreement
    estimator: Agreement

    @property
    def trusted(self) -> bool:
        """Whether influence on the blocks ranks pairs as influence on all parameters does."""
        return self.blocks.pairs is not None and self.blocks.pairs >= TRUSTED

    @property
    def metrics(self) -> dict[str, float]:
        """For the page of a run; what is not known is left out."""
        known = {
            "probe_blocks_spearman": self.blocks.pairs,
            "probe_blocks_error": self.blocks.error,
            "probe_estimator_spearman": self.estimator.pairs,
        }
        return {name: value for name, value in known.items() if value is not None}

    def verdict(self, estimator: str) -> str:
        """One line: trusted or not, by how much, and the remedy."""
        if self.blocks.pairs is None:
            return "WARNING, not known: conjugate gradients did not converge on the probe; raise scoring.damping"
        whole = f"{self.parameters:,} parameters (mean over {self.curvature_points:,} train points)"
        on_blocks = f"exact on the blocks {_figure(self.blocks.pairs)} (error {_figure(self.blocks.error)}), "
        said = (
            f"rank correlation of {self.points} x {self.queries} pairs with exact Gauss-Newton on all {whole}: "
            f"{on_blocks if self.blocks.error else ''}{estimator} on the blocks {_figure(self.estimator.pairs)}, "
            f"of its influence on the mean of the queries {_figure(self.estimator.means)}"
        )
        if not self.trusted:
            return f"WARNING, not trusted: select more blocks (scoring.blocks); {said}"
        return f"trusted{'' if self.blocks.error else ', the blocks are all that is trained'}; {said}"


def described(summary: BlockSummary) -> str:
    """The blocks and how much of the model they are."""
    names = summary.names
    named = ", ".join(names) if len(names) <= NAMED else f"{names[0]} … {names[-1]} ({len(names)} blocks)"
    energy = "" if summary.energy is None else f", {summary.energy:.1%} of the gradient energy"
    return f"{named}: {summary.parameters:,} parameters, {summary.share:.1%} of the model{energy}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
