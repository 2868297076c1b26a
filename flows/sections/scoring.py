"""Section `scoring`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from flows.sections.base import Count, Precision, Section, Share


class DampingConfig(Section):
    """The damping of a curvature: `absolute`, `mean_eig` (a share of the mean eigenvalue) or `horizon`."""

    kind: Literal["absolute", "mean_eig", "horizon"] = "horizon"
    value: Annotated[float, Field(gt=0)] | None = None
    """The number for `absolute` and `mean_eig`; `horizon` takes 1/T + weight decay from the training."""

    @model_validator(mode="after")
    def _valued(self) -> DampingConfig:
        if (self.kind == "horizon") != (self.value is None):
            raise ValueError(f"kind {self.kind!r} {'takes no value' if self.kind == 'horizon' else 'needs a value'}")
        return self


EstimatorName = Literal["ekfac", "kfac", "dense", "dual", "arnoldi", "pcg", "identity"]


class BlocksConfig(Section):
    """Which parameters influence is computed on; each key narrows what the keys before it left."""

    types: tuple[str, ...] = ()
    """Classes of modules, named as in torch.nn; default: trained Linear, Conv1d and Conv2d, or any with names."""
    names: tuple[str, ...] = ()
    """Globs over module names."""
    energy: Share | None = None
    """Few parameters that hold this share of the gradient energy."""
    last: Count | None = None
    """So many blocks at the end of the model."""
    budget: Count | None = None
    """As many blocks at the end of the model as hold at most this many parameters."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if given == "auto":
            return {"energy": 0.9}
        return {"names": given} if isinstance(given, list | tuple) else given


class FactorCacheConfig(Section):
    """What each rank may keep of per-point factors between passes, in megabytes; the rest is computed again."""

    memory: Annotated[int, Field(ge=0)] = 256
    disk: Annotated[int, Field(ge=0)] = 0
    """In a temporary file beside the scores, once memory is full."""


CompressionKind = Literal["mask", "sjlt", "mask+sjlt", "logra"]


class CompressionConfig(Section):
    """How gradients are made smaller before anything is kept or solved; the same for train points and queries."""

    kind: CompressionKind = "mask"
    """Dropout of rows and columns of a layer, sparse random sums, the two together, or a random matrix on each side."""
    ratio: Annotated[float, Field(gt=1)] = 4.0
    """How many times smaller."""


class ScoringConfig(Section):
    """How the points are scored."""

    ranks: Count = 2
    placement: Literal["replicated", "split", "partitioned"] = "replicated"
    """Model and curvature whole on each rank; curvature and solved queries split by blocks, for which every rank then
    reads all points; or the model's parameters partitioned over the ranks (ZeRO-3), and gathered layer by layer."""
    precision: Precision = "fp32"
    """Of the model's forward and backward passes; factors and curvature are float32 and float64 in any case."""
    estimator: EstimatorName = "ekfac"
    """`tamis estimators` says what there is, what it costs and when to use it."""
    blocks: BlocksConfig = BlocksConfig()
    """A list of globs, `"auto"` for the few blocks that hold nine tenths of the gradient energy, or a table."""
    compression: CompressionConfig | None = None
    """Gradients are made smaller, and with them the curvature and what is kept; none by default."""
    fisher: Literal["exact", "sampled", "empirical"] = "exact"
    """Labels that the curvature is an expectation over: all, one drawn per point (large vocabularies), the given."""
    factor_cache: FactorCacheConfig = FactorCacheConfig()
    damping: DampingConfig | None = None
    """Default: the weight decay for ekfac and kfac, 1 for identity, else `horizon`."""
    per_block: bool = False
    """A column `influence_block_<block>` for each block: what it contributes to the influence, which is their sum."""
    exact_head: bool = True
    """Exact Gauss-Newton on the head beside EK-FAC, as a signal; false for a head of more than 4,096 parameters."""
    head_damping: DampingConfig = DampingConfig()
    """Of the exact Gauss-Newton on the head."""
    probe: Annotated[int, Field(ge=0)] = 50
    """Train points on which the blocks are compared with all parameters of the model, exactly; 0 for none."""
    chunk: Count = 256
    """Points per score shard; the grain at which ranks share the work."""
    folds: Annotated[int, Field(ge=2)] = 5
    repeats: Count = 2
    """How often the points are dealt into folds anew, in each of the two rounds of suspicion."""
    neighbours: Count = 15

    @model_validator(mode="after")
    def _compressed(self) -> ScoringConfig:
        if self.compression is not None and self.exact_head:
            raise ValueError("compression needs exact_head = false, which reads the head's gradients in full")
        if self.compression is not None and "sjlt" in self.compression.kind and self.estimator in ("ekfac", "kfac"):
            raise ValueError(
                f"compression by {self.compression.kind!r} leaves {self.estimator} no layers: take 'mask' or 'logra', "
                "or the estimator dual, arnoldi or pcg"
            )
        return self

    @model_validator(mode="after")
    def _placed(self) -> ScoringConfig:
        if self.placement == "partitioned" and (self.probe or self.blocks.energy is not None):
            raise ValueError(
                "placement 'partitioned' needs probe = 0 and blocks that are not chosen by their energy: both take "
                "gradients of the whole model"
            )
        return self

    @model_validator(mode="after")
    def _split(self) -> ScoringConfig:
        if self.placement == "split" and self.blocks.energy is not None:
            raise ValueError("placement 'split' needs blocks that are not chosen by their energy, known after training")
        if self.placement == "split" and (self.compression or self.estimator not in ("ekfac", "kfac", "identity")):
            raise ValueError(
                "placement 'split' is for ekfac, kfac and identity without compression: other estimators take blocks "
                "together"
            )
        return self

    @model_validator(mode="after")
    def _by_block(self) -> ScoringConfig:
        if self.per_block and (self.placement == "split" or self.estimator not in ("ekfac", "kfac", "identity")):
            raise ValueError(
                "per_block is for ekfac, kfac and identity, and not for placement 'split': the influence of other "
                "estimators is no sum over blocks"
            )
        return self

    @field_validator("probe")
    @classmethod
    def _ranked(cls, probe: int) -> int:
        if 0 < probe < 10:
            raise ValueError("a rank correlation of so few points says nothing; give 0 or at least 10")
        return probe
