"""The rows of the estimators' tables, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from influence import EKFAC, KFAC, PCG, Blocks, DualGaussNewton, Fisher, GaussNewton, Identity
from influence.compression import (
    Compressor,
    coordinate_mask,
    factor_mask,
    gaussian,
    masked_sjlt,
    principal_logra,
    random_logra,
    sjlt,
)
from influence.curvature.arnoldi import Arnoldi
from tests.left_out.datainf import DataInf
from tests.left_out.diagonal import Diagonal
from tests.left_out.lissa import LiSSA
from tests.proof.lds_estimators import CUT
from tests.proof.table_trained import data_values, fine_tuned, ignored, segmented, turned_over
from tests.proof.table_ways import ALONE, MULTIPLES, Case, Engine, Way, cosine, decay, fitted_kfac, horizon

Compress = Callable[[Blocks, Case, nn.Module, int], Compressor]
RANK = 100
dual = partial(DualGaussNewton, cut=CUT)
published = partial(Arnoldi, rank=RANK, complement=False)
completed = partial(Arnoldi, rank=RANK)


def _by(make: Callable[..., Compressor], ratio: float) -> Compress:
    return lambda blocks, case, model, seed: make(blocks, ratio, seed)


def _principal(ratio: float) -> Compress:
    return lambda blocks, case, model, seed: principal_logra(blocks, ratio, fitted_kfac(blocks, case, model))


def _unit(recipe: object) -> float:
    return 1.0


FULL: Mapping[str, Way] = {
    "gradient dot": Way(Engine(Identity, _unit), ALONE),
    "gradient cosine": Way(cosine, ALONE),
    "TracIn, 4 checkpoints": Way(Engine(Identity, _unit, checkpoints=4, rates=True), ALONE),
    "diagonal": Way(Engine(Diagonal, horizon)),
    "DataInf": Way(Engine(DataInf, horizon)),
    "K-FAC": Way(Engine(KFAC, decay)),
    "EK-FAC": Way(Engine(EKFAC, decay)),
    "EK-FAC, 4 checkpoints": Way(Engine(EKFAC, decay, checkpoints=4)),
    "EK-FAC, empirical Fisher": Way(Engine(EKFAC, decay, fisher=Fisher("empirical"))),
    "factor mask 4 x, EK-FAC": Way(Engine(EKFAC, decay, _by(factor_mask, 4))),
    "factor mask 4 x, EK-FAC, 4 checkpoints": Way(Engine(EKFAC, decay, _by(factor_mask, 4), checkpoints=4)),
    "LoGra PCA 4 x, EK-FAC": Way(Engine(EKFAC, decay, _principal(4))),
    "exact GGN on the head": Way(Engine(GaussNewton, horizon, only_head=True)),
    "dual GGN": Way(Engine(dual, horizon), ALONE),
    "dual GGN, 4 checkpoints": Way(Engine(dual, horizon, checkpoints=4), ALONE),
    "PCG": Way(Engine(PCG, horizon), ALONE, lds_alone=True),
    "LiSSA, 100 products": Way(Engine(partial(LiSSA, iterations=100), horizon), ALONE, lds_alone=True),
    f"Arnoldi as published, rank {RANK}": Way(Engine(published, horizon)),
    f"Arnoldi with complement, rank {RANK}": Way(Engine(completed, horizon)),
    "data value embedding, second half": Way(data_values, ALONE),
    "SOURCE, 4 segments": Way(segmented, ALONE),
    "turn-over dropout, 4 families": Way(turned_over, ALONE),
    "learning by ignoring": Way(ignored, ALONE),
    "empirical influence": Way(fine_tuned, ALONE),
}
SMALLER: Mapping[str, Way] = {
    f"{name} {ratio} x, {kind}": Way(
        Engine(curvature, damping, compress(ratio)), MULTIPLES if curvature is EKFAC else ALONE, lds_alone=True
    )
    for name, kind, curvature, damping, compress, ratios in (
        ("factor mask", "EK-FAC", EKFAC, decay, partial(_by, factor_mask), (16, 64)),
        ("LoGra random", "EK-FAC", EKFAC, decay, partial(_by, random_logra), (4, 16, 64)),
        ("LoGra PCA", "EK-FAC", EKFAC, decay, _principal, (16, 64)),
        ("factor mask", "dual GGN", dual, horizon, partial(_by, factor_mask), (4, 16, 64)),
        ("coordinate mask", "dual GGN", dual, horizon, partial(_by, coordinate_mask), (4, 16, 64)),
        ("SJLT", "dual GGN", dual, horizon, partial(_by, sjlt), (4, 16, 64)),
        ("mask + SJLT", "dual GGN", dual, horizon, partial(_by, masked_sjlt), (4, 16, 64)),
        ("LoGra random", "dual GGN", dual, horizon, partial(_by, random_logra), (4, 16, 64)),
        ("Gaussian", "dual GGN", dual, horizon, partial(_by, gaussian), (64,)),
    )
    for ratio in ratios
}
ENSEMBLES: Mapping[str, Way] = {
    f"4 factor masks {ratio} x, EK-FAC": Way(Engine(EKFAC, decay, _by(factor_mask, ratio), masks=4), lds_alone=True)
    for ratio in (4, 16)
}
ROWS: Mapping[str, Way] = {**FULL, **SMALLER, **ENSEMBLES}
USES: Mapping[str, str] = {
    "EK-FAC": "the default: models of any size; over checkpoints, where the last has fitted its points",
    "K-FAC": "where a second pass is too dear",
    "EK-FAC, empirical Fisher": "many classes: one backward pass a point",
    "factor mask": "dropout as compression: EK-FAC at a quarter of its size, of wide dense layers; not of small ones",
    "LoGra random": "a little better than a mask of that size on three networks of four, a little slower",
    "LoGra PCA": "the least loss at a quarter and a 16th, on wide layers none, after one K-FAC pass",
    "SJLT, mask + SJLT": "for the exact curvatures, which need no layers; the mask first where gradients are large",
    "coordinate mask": "the half of mask + SJLT that saves memory; alone it is no better than SJLT at any size",
    "Gaussian": "what SJLT is held against: as good, with a matrix as long as the model",
    "exact GGN on the head": "self-influence: the best signal of flips of one model, at the least cost; transformers",
    "dual GGN": "few points; single pairs and chosen queries",
    "Arnoldi with complement": "more points than the dual takes: near it in quality, 3 to 7 times the cost of EK-FAC",
    "Arnoldi as published": "for comparison (`complement=False`): behind the complement on every task, damping chosen",
    "PCG": "the oracle of the others; more points than the dual takes, where exactness is worth hours",
    "data value embedding": "what a point did at each step of one training, models that have not converged",
    "SOURCE": "no damping to choose; ahead of EK-FAC only where that is not chosen either",
    "turn-over dropout": "self-influence without gradients, for whoever can change the training",
    "empirical influence": "the oracle without theory, on small models",
    "gradient dot, TracIn": "baselines",
}
LEFT_OUT: Mapping[str, str] = {
    "gradient cosine": "above gradient dot on two networks, below it on two, below K-FAC on all; no unit",
    "diagonal": "little above gradient dot: .4 to .8 of K-FAC's LDS",
    "DataInf": "a little above gradient dot, at the cost of the exact dual",
    "LiSSA": "conjugate gradients need the square root of as many products",
    "learning by ignoring": "one bilevel step is gradient dot at the model one step ahead",
}
