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
    "K-FAC": "perceptrons: at least EK-FAC's LDS at .8 of its cost; on the CNN and the transformer .05 behind",
    "EK-FAC, empirical Fisher": "one backward pass a point, however many classes: damping chosen, EK-FAC's LDS on all "
    "but digits, at .2 to .9 of its cost",
    "factor mask": "EK-FAC at a quarter of its size for .015 to .032 of LDS, .076 on digits, whose layers are small; "
    "time and memory fall by a third and more on the perceptrons, by a seventh at most elsewhere",
    "LoGra random": "at a quarter .011 to .019 above the factor mask, on the transformer .005 below it; as fast or up "
    "to 1.5 times as slow",
    "LoGra PCA": "after one K-FAC pass the least loss at a quarter, and at a 16th but on the transformer; within .003 "
    "of EK-FAC on the Fashion-MNIST MLP and the CNN; at a quarter faster than it on the perceptrons alone",
    "4 factor masks": "their mean: .003 to .031 above one mask at a quarter, for 1.3 to 3.8 times the cost of EK-FAC "
    "without any; made of single masks, by whoever averages scores",
    "SJLT": "for the dual, without regard to layers: its least loss at 4 and 16 x but on the transformer; at 4 x "
    "dearer than no compression on the Fashion-MNIST MLP and the CNN",
    "mask + SJLT": "on the CNN SJLT's LDS at 4 and 64 x in .9 and .8 of its time, nowhere one that is clearly higher; "
    "layers so wide that 12 bytes for every parameter, which SJLT's tables take, are too many: no row is that wide",
    "coordinate mask": "on the transformer SJLT's LDS at 16 and 64 x, in the least time and memory of the "
    "compressions at 16 x (one measurement); behind SJLT on the three other tasks",
    "Gaussian": "what SJLT is held against: as good at 64 x, the only size measured; its matrix is as long as the "
    "model",
    "exact GGN on the head": "self-influence: the best AP of flips by one model's influence, at the least cost; "
    "transformers: above EK-FAC of one checkpoint",
    "dual GGN": "few points; single pairs and chosen queries",
    "Arnoldi with complement": "more points than the dual takes: .01 to .02 behind it by the recipe's damping, 3 to 7 "
    "times the cost of EK-FAC",
    "Arnoldi as published": "for comparison (`complement=False`): behind the complement by .029 to .092, damping "
    "chosen; by the recipe's by .052 to .077, on the transformer by .002",
    "PCG": "the oracle of the others; few queries, exactly, in a fifth to two thirds of the dual's memory "
    "(docs/peers.md); self-influence takes a solution for each point",
    "data value embedding": "what a point did at each step of one training by SGD, which is recorded; the sum ranks "
    "as the dual of one checkpoint or above it, below that of four but on digits",
    "SOURCE": "leads no column: 0 to .018 above EK-FAC where that keeps to the recipe's damping, below it where it is "
    "chosen, at 3 to 5 times its cost; kept for its question, what each part of a training adds, without a damping",
    "turn-over dropout": "the lowest LDS of all, and by self-influence fewer flips than the loss finds for nothing; "
    "kept for its question, what the half of the model says that a point never trained: no gradient, and the least "
    "memory on perceptrons, but a training with masks",
    "empirical influence": "small models, one point at a time: the highest AUC of flips by influence on the queries "
    "on all but the CNN, and what the desiderata hold EK-FAC against",
    "gradient dot, TracIn": "baselines",
}
LEFT_OUT: Mapping[str, str] = {
    "gradient cosine": "above gradient dot on two networks, below it on two, below K-FAC on all; no unit; finds flips "
    "on digits (AUC .952), behind empirical influence",
    "diagonal": "little above gradient dot: .4 to .8 of K-FAC's LDS",
    "DataInf": "a little above gradient dot, at .2 to 1.5 times the cost of the exact dual",
    "LiSSA": "conjugate gradients need the square root of as many products: .04 behind PCG, at 3 to 5 times its cost",
    "learning by ignoring": "one bilevel step is gradient dot at the model one step ahead",
}
