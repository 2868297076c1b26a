"""Influence functions for data curation: the mathematics, in tensors and callables; nothing here knows files or ranks.

Sign, everywhere: influence is the predicted rise of a query's loss, in nats, if a train point is REMOVED,

    T[i, q] = +(1/n) g_q' H^-1 g_i,

so positive = helpful and negative = harmful. Notation: n train points, m queries, B points of a batch, T positions of a
sequence, C classes; a block is a linear layer with weight and bias as one matrix [o, i].
"""

from influence.blocks import Block, BlockSummary, head, linear_blocks, select, summarize
from influence.curvature.base import AllReduce, Curvature, Damping, DampingKind, Diagnostics, alone
from influence.curvature.dense import HeadGaussNewton
from influence.curvature.kronecker import EKFAC
from influence.discovery import Discovery, Influences, Trusted, harmful, mislabeled, trusted
from influence.errors import InfluenceError, NotFinite, NotPerPoint, UnknownBlock
from influence.factored import Factor, Factors, materialise
from influence.gradients import FactorSource, HeadOutputs, check_cross_entropy, head_outputs, label_factors
from influence.memorization import CheapSignals, MemorizationLabel, cheap_signals, memorization_labels
from influence.scores import ChunkScores, PairScores, Scorer, TopQueries, stratified_error, summarize_chunk
from influence.sharding import ChunkGrid, Share
from influence.suspicion import Suspicion, knn_votes, suspect, two_round
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

__all__ = [
    "EKFAC",
    "AllReduce",
    "Block",
    "BlockSummary",
    "CheapSignals",
    "ChunkGrid",
    "ChunkScores",
    "Curvature",
    "Damping",
    "DampingKind",
    "Diagnostics",
    "Discovery",
    "Factor",
    "FactorSource",
    "Factors",
    "HeadGaussNewton",
    "HeadOutputs",
    "InfluenceError",
    "Influences",
    "MemorizationLabel",
    "NotFinite",
    "NotPerPoint",
    "PairScores",
    "PrecisionRecall",
    "Scorer",
    "Share",
    "Suspicion",
    "TopQueries",
    "Trusted",
    "UnknownBlock",
    "alone",
    "auc",
    "average_precision",
    "cheap_signals",
    "check_cross_entropy",
    "harmful",
    "head",
    "head_outputs",
    "knn_votes",
    "label_factors",
    "lds",
    "linear_blocks",
    "loo_correlation",
    "materialise",
    "memorization_labels",
    "mislabeled",
    "pearson",
    "precision_recall",
    "select",
    "spearman",
    "stratified_error",
    "summarize",
    "summarize_chunk",
    "suspect",
    "trusted",
    "two_round",
]
