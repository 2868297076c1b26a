"""Influence functions for data curation: the mathematics, in tensors and callables; nothing here knows files or ranks.

Sign, everywhere: influence is the predicted rise of a query's loss, in nats, if a train point is REMOVED,

    T[i, q] = +(1/n) g_q' H^-1 g_i,

so positive = helpful and negative = harmful. Notation: n train points, m queries, B points of a batch, T positions of a
sequence, C classes, V words of a vocabulary, R Fisher roots of a point; a block is what one module owns, as one matrix
[o, i].
"""

from influence.blocks import (
    Block,
    Blocks,
    BlockSummary,
    Selection,
    available,
    body,
    by_name,
    by_type,
    features,
    head,
    holding,
    large_output,
    last,
    linear_blocks,
    select,
    summarize,
    trained,
    within,
)
from influence.cache import FactorCache
from influence.compression import (
    Compressor,
    InnerProducts,
    coordinate_mask,
    factor_mask,
    gaussian,
    inner_products,
    masked_sjlt,
    principal_logra,
    random_logra,
    sjlt,
)
from influence.conformity import Conformity, label_conformity
from influence.curvature.arnoldi import Arnoldi, Spectrum, arnoldi
from influence.curvature.base import (
    AllReduce,
    Curvature,
    Damping,
    DampingKind,
    Diagnostics,
    Own,
    Restorable,
    Snapshot,
    alone,
)
from influence.curvature.dense import GaussNewton
from influence.curvature.dual import DualGaussNewton
from influence.curvature.identity import Identity
from influence.curvature.iterative import PCG, Solution, conjugate_gradients
from influence.curvature.kronecker import EKFAC, KFAC
from influence.curvature.products import Product, factor_product, model_product
from influence.curvature.sweep import SweepPoint, damping_sweep
from influence.discovery import Discovery, Influences, Trusted, harmful, memorized, mislabeled, trusted
from influence.empirical import Desiderata, desiderata, empirical_influence
from influence.engine import Influence
from influence.ensemble import over_checkpoints, over_models
from influence.errors import InfluenceError, NotFinite, NotPerPoint, UnknownBlock
from influence.exchange import Broadcast, share_queries
from influence.factored import Factor, Factors, Gradients, materialise
from influence.fisher import Fisher, FisherKind
from influence.fitting import fit, subset
from influence.gradients import FactorSource, gradient_energy
from influence.learning import LearningSignals, learning_signals
from influence.memorization import CheapSignals, MemorizationLabel, cheap_signals, grand, memorization_labels
from influence.objective import check_cross_entropy
from influence.positions import PositionInfluence, direction, position_counts, position_influence
from influence.proxies import held_out_retrain, loss_curvature
from influence.queries import Groups, Queries, each, group_means
from influence.reader import Reader
from influence.reading import Reading, Task
from influence.relative import RelativeInfluence, relative_influence
from influence.removal import influence_step, move, summed
from influence.scores import (
    ChunkScores,
    GroupScorer,
    GroupScores,
    PairScorer,
    PairScores,
    SolvedScorer,
    TopQueries,
    stratified_error,
    summarize_chunk,
)
from influence.sharding import ChunkGrid, Share
from influence.stages import Stage, StageInfluence, stage_influence
from influence.suspicion import Suspicion, knn_votes, suspect, two_round
from influence.tokens import IGNORED, are_targets, point_losses
from influence.trajectory import Step, Trajectory, removal_effects, step_effects
from influence.turnover import TurnOver, turn_over_influence, turn_over_self_influence
from influence.unlearning import unlearning_step
from influence.unrolling import Segment, unroll, unrolled_influence
from influence.validation import (
    PrecisionRecall,
    auc,
    average_precision,
    lds,
    loo_correlation,
    pearson,
    precision_recall,
    spearman,
)
from influence.whole import Agreement, agreement, exact_influence, point_energies

__all__ = [
    "EKFAC",
    "IGNORED",
    "KFAC",
    "PCG",
    "Agreement",
    "AllReduce",
    "Arnoldi",
    "Block",
    "BlockSummary",
    "Blocks",
    "Broadcast",
    "CheapSignals",
    "ChunkGrid",
    "ChunkScores",
    "Compressor",
    "Conformity",
    "Curvature",
    "Damping",
    "DampingKind",
    "Desiderata",
    "Diagnostics",
    "Discovery",
    "DualGaussNewton",
    "Factor",
    "FactorCache",
    "FactorSource",
    "Factors",
    "Fisher",
    "FisherKind",
    "GaussNewton",
    "Gradients",
    "GroupScorer",
    "GroupScores",
    "Groups",
    "Identity",
    "Influence",
    "InfluenceError",
    "Influences",
    "InnerProducts",
    "LearningSignals",
    "MemorizationLabel",
    "NotFinite",
    "NotPerPoint",
    "Own",
    "PairScorer",
    "PairScores",
    "PositionInfluence",
    "PrecisionRecall",
    "Product",
    "Queries",
    "Reader",
    "Reading",
    "RelativeInfluence",
    "Restorable",
    "Segment",
    "Selection",
    "Share",
    "Snapshot",
    "Solution",
    "SolvedScorer",
    "Spectrum",
    "Stage",
    "StageInfluence",
    "Step",
    "Suspicion",
    "SweepPoint",
    "Task",
    "TopQueries",
    "Trajectory",
    "Trusted",
    "TurnOver",
    "UnknownBlock",
    "agreement",
    "alone",
    "are_targets",
    "arnoldi",
    "auc",
    "available",
    "average_precision",
    "body",
    "by_name",
    "by_type",
    "cheap_signals",
    "check_cross_entropy",
    "conjugate_gradients",
    "coordinate_mask",
    "damping_sweep",
    "desiderata",
    "direction",
    "each",
    "empirical_influence",
    "exact_influence",
    "factor_mask",
    "factor_product",
    "features",
    "fit",
    "gaussian",
    "gradient_energy",
    "grand",
    "group_means",
    "harmful",
    "head",
    "held_out_retrain",
    "holding",
    "influence_step",
    "inner_products",
    "knn_votes",
    "label_conformity",
    "large_output",
    "last",
    "lds",
    "learning_signals",
    "linear_blocks",
    "loo_correlation",
    "loss_curvature",
    "masked_sjlt",
    "materialise",
    "memorization_labels",
    "memorized",
    "mislabeled",
    "model_product",
    "move",
    "over_checkpoints",
    "over_models",
    "pearson",
    "point_energies",
    "point_losses",
    "position_counts",
    "position_influence",
    "precision_recall",
    "principal_logra",
    "random_logra",
    "relative_influence",
    "removal_effects",
    "select",
    "share_queries",
    "sjlt",
    "spearman",
    "stage_influence",
    "step_effects",
    "stratified_error",
    "subset",
    "summarize",
    "summarize_chunk",
    "summed",
    "suspect",
    "trained",
    "trusted",
    "turn_over_influence",
    "turn_over_self_influence",
    "two_round",
    "unlearning_step",
    "unroll",
    "unrolled_influence",
    "within",
]
