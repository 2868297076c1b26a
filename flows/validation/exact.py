"""The study `exact-loo`: predicted against exact leave-one-out effects of a softmax regression.

The loss is convex in the parameters of one linear layer, so the minimum with and without a point is found exactly. It
is the minimum of the mean loss plus weight_decay / 2 of the squared parameters, and the estimator is run there.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from flows.errors import BadInput
from flows.launch import Progress
from flows.validation.bench import Bench
from flows.validation.loo import agreement_rows
from flows.validation.results import Study
from flows.validation.setting import Setting
from flows.workload import seeded_model
from influence.convex import minimise

LEFT_OUT = 100


def study(bench: Bench) -> Study:
    """Refit without each of some random points."""
    setting = bench.setting
    training = setting.config.training
    draw = torch.randperm(len(setting.train), generator=torch.Generator().manual_seed(training.seed))[:LEFT_OUT]
    model = _in_float64(convex_model(setting))
    train, queries = (points.take(range(len(points))) for points in (setting.train, setting.queries))

    def fitted(left_out: int | None) -> Tensor:
        minimise(model, lambda: setting.workload.loss(model, train), training.weight_decay, left_out)
        with torch.no_grad():
            return setting.workload.loss(model, queries)  # [m]

    before, optimum = fitted(None), copy.deepcopy(model.state_dict())
    rises = []
    for done, place in enumerate(draw.tolist(), start=1):
        model.load_state_dict(optimum)
        rises.append(fitted(place) - before)
        bench.show(Progress("exact leave-one-out", done, len(draw)))
    real = torch.stack(rises)  # [r, m]
    judged = convex_model(setting)
    judged.load_state_dict(optimum)
    return Study(
        name="exact-loo",
        protocol=f"{len(draw)} random points, each left out of the exact minimum with ridge {training.weight_decay:g}; "
        f"over all pairs with {real.shape[1]} queries, interval over points",
        rows=agreement_rows("influence", bench.score([judged]).influence[draw], real),
    )


def convex_model(setting: Setting) -> nn.Module:
    """A new model of the workload, whose loss is convex.

    Raises:
        BadInput: The model is more than one linear layer, or nothing keeps its parameters finite.
    """
    model = seeded_model(setting.workload, setting.config.training.seed)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    outside = {id(p) for p in model.parameters()} - {id(p) for layer in layers for p in layer.parameters()}
    if len(layers) != 1 or outside:
        raise BadInput(
            f"the study exact-loo needs a convex loss, so a model of one Linear layer and nothing else that learns; "
            f"{type(model).__name__} has {len(layers)} Linear layers and {len(outside)} other parameter tensors"
        )
    if not setting.config.training.weight_decay:
        raise BadInput("the study exact-loo needs training.weight_decay above 0, or a minimum need not exist")
    return model


def _in_float64(model: nn.Module) -> nn.Module:
    """The model in float64, whatever the type of the samples and of what the workload makes of them."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: tuple(one.double() for one in inputs))
    return model.double()
