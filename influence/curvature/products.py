"""Products with the damped Gauss-Newton matrix, v -> (1/n) sum_i J_i' Lam_i J_i v + damping v, without the matrix.

Lam_i = diag(p) - p p' of point i's predicted probabilities p. Either from kept Fisher roots, as matrix products of
factors, or through a model, for any of its parameters.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap

from influence.curvature.joint import add_up, runs
from influence.errors import InfluenceError
from influence.factored import Factor, Factors, Gradients, materialise
from influence.matmul import product
from influence.refusals import refuse_training
from influence.tokens import are_targets, weights
from influence.unfused import unfused

Batch = TypeVar("Batch")
Product = Callable[[Gradients], Gradients]

COLUMNS = 8  # gradients that go through a model at a time; more are no faster each


def factor_product(roots: Factors, damping: float) -> Product:
    """The product from roots of all n points, as matrix products.

    Args:
        roots: with g of shape [R, n, T, o]; multiplied in the dtype of the gradients that are given.
        damping: at least 0.
    """

    def apply(v: Gradients) -> Gradients:
        inner = sum_of_blocks(roots, v)  # [n, k, R]
        return {name: combine(roots[name], inner) / len(inner) + damping * one for name, one in v.items()}

    name, first = next(iter(roots.items()))
    few = first.a.shape[1] == 1 and first.g.shape[3] <= len(first.g)
    return _product_alone(name, first, damping) if few and len(roots) == 1 else apply


def _product_alone(name: str, roots: Factor, damping: float) -> Product:
    """On one block of single positions, a head, (1/n) sum_b S_b V a_b a_b' + damping V with S_b = sum_r g_rb g_rb'."""
    g = roots.g[:, :, 0].permute(1, 2, 0)  # [n, o, R]
    s, a = g @ g.mT, roots.a[:, 0]  # [n, o, o], [n, i]

    def apply(v: Gradients) -> Gradients:
        k, o, i = v[name].shape
        sums = v[name].new_zeros(k * o, i)
        for run in runs(len(a), k * o):
            inputs = a[run].to(sums)
            turned = product(inputs, v[name].reshape(k * o, i).T).unflatten(1, (k, o))  # [b, k, o]
            sums += product((turned @ s[run].to(sums)).flatten(1).T, inputs)
        return {name: sums.view(k, o, i) / len(a) + damping * v[name]}

    return apply


def sum_of_blocks(roots: Factors, gradients: Gradients) -> Tensor:
    """Inner products over all blocks together, [B, k, R]."""
    return add_up(project(factor, gradients[name]) for name, factor in roots.items())


def project(roots: Factor, gradients: Tensor) -> Tensor:
    """Inner products of the R gradients of each of B points with k others.

    Args:
        roots: with g of shape [R, B, T, o].
        gradients: [k, o, i].

    Returns:
        [B, k, R].
    """
    k, o, i = gradients.shape
    found = gradients.new_empty(len(roots), k, len(roots.g))
    columns, flat = gradients.reshape(k * o, i).T, gradients.flatten(1)
    for run, part in _runs(roots, k, gradients.dtype):
        if _forms(roots, k):
            found[run] = (materialise(part).flatten(2) @ flat.T).permute(1, 2, 0)  # [R, b, o i] @ [o i, k]
        else:
            turned = product(part.a, columns).unflatten(2, (k, o)).transpose(1, 2).flatten(2)  # [b, k, T o]
            torch.bmm(turned, part.g.permute(1, 2, 3, 0).flatten(1, 2), out=found[run])
    return found


def combine(roots: Factor, coefficients: Tensor) -> Tensor:
    """The adjoint of `project`: sums of the gradients of all points, weighted by coefficients [B, k, R]; [k, o, i]."""
    k, o, i = coefficients.shape[1], roots.g.shape[3], roots.a.shape[2]
    sums = coefficients.new_zeros(k * o, i)
    for run, part in _runs(roots, k, coefficients.dtype):
        c = coefficients[run]  # [b, k, R]
        if _forms(roots, k):
            full = materialise(part).flatten(2).flatten(0, 1)  # [R b, o i]
            sums += (c.permute(1, 2, 0).reshape(k, -1) @ full).view(k * o, i)
        else:
            mixed = (c @ part.g.permute(1, 0, 2, 3).flatten(2)).unflatten(2, (-1, o))  # [b, k, T, o]
            sums += product(mixed.transpose(1, 2).reshape(-1, k * o).T, part.a.flatten(0, 1))  # [k o, b T] @ [b T, i]
    return sums.view(k, o, i)


def model_product(
    model: nn.Module,
    logits: Callable[[nn.Module, Batch], Tensor],
    batches: Iterable[Batch],
    parameters: Sequence[str],
    damping: float,
    labels: Callable[[Batch], Tensor] | None = None,
) -> Product:
    """The product through a model, forward over reverse: for any parameters, in the memory of a few batches.

    Gradients are by parameter name, [k, *shape of the parameter].

    Args:
        model: in evaluation mode; its dtype is that of the computation.
        logits: [B, C] of a batch; of texts [B, T, V].
        batches: all train points; read anew for every product.
        parameters: names, as in `named_parameters`; the others are constants.
        damping: at least 0.
        labels: of a batch, which tell where texts have targets.

    Raises:
        InfluenceError: the model is in training mode, or a name is unknown.
    """
    refuse_training(model)
    known = {name: value.detach() for name, value in model.named_parameters()}
    if not known.keys() >= set(parameters):
        raise InfluenceError(f"the model has no parameter {', '.join(sorted(set(parameters) - known.keys()))}")
    at, values = _Logits(model, logits), {name: known[name] for name in parameters}

    def product(v: Gradients) -> Gradients:
        tangents = {name: v[name].to(value.dtype) for name, value in values.items()}
        sums, points = {name: torch.zeros_like(one) for name, one in v.items()}, 0
        for batch in batches:
            given = None if labels is None else labels(batch)
            count, added = _of_batch(at, values, batch, tangents, given)
            points += count
            for name, one in added.items():
                sums[name] += one
        return {name: one / points + damping * v[name] for name, one in sums.items()}

    return product


def largest_eigenvalue(apply: Callable[[Tensor], Tensor], size: int, device: torch.device | None = None) -> float:
    """Of a symmetric semidefinite matrix, by subspace iteration from a fixed start.

    Args:
        apply: the matrix times rows, [k, size] -> [k, size].
        size: its order.
        device: where it is; None is the CPU.
    """
    basis = torch.randn(8, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    for _ in range(20):  # the error shrinks by the square of the ratio of the ninth to the first eigenvalue each time
        basis = torch.linalg.qr(apply(basis).T).Q.T
    return float(torch.linalg.eigvalsh(basis @ apply(basis).T)[-1])


class _Logits(nn.Module, Generic[Batch]):
    """The model's logits as a module, which is what `functional_call` takes."""

    def __init__(self, model: nn.Module, logits: Callable[[nn.Module, Batch], Tensor]) -> None:
        super().__init__()
        self.model, self._logits = model, logits

    def forward(self, batch: Batch) -> Tensor:
        return self._logits(self.model, batch)

    def at(self, values: Gradients, batch: Batch) -> Tensor:
        """The logits under other values of some parameters."""
        named = {f"model.{name}": value for name, value in values.items()}
        found: Tensor = functional_call(self, named, (batch,))
        return found


def _of_batch(
    logits: _Logits[Batch], values: Gradients, batch: Batch, tangents: Gradients, labels: Tensor | None
) -> tuple[int, Gradients]:
    """How many points a batch has, and the sum of their products."""

    def outputs(given: Gradients) -> Tensor:
        return logits.at(given, batch)

    def one(tangent: Gradients) -> Gradients:
        moved: Tensor = jvp(outputs, (values,), (tangent,))[1]  # J v, [B, C]
        weighted = shares * moved
        pulled: tuple[Gradients] = pull(weighted - p * weighted.sum(-1, keepdim=True))
        return pulled[0]

    with torch.no_grad(), unfused():  # or the constant parameters would keep the graph
        z, pull = vjp(outputs, values)[:2]
        p = z.softmax(-1)  # [B, C]
        shares = p if labels is None or not are_targets(labels) else p * weights(labels)[..., None].to(p)
        sums: Gradients = vmap(one, chunk_size=COLUMNS)(tangents)
    return len(z), sums


def _forms(roots: Factor, k: int) -> bool:
    """Whether forming the gradients multiplies less than contracting position by position."""
    r, _, t, _ = roots.g.shape
    i = roots.a.shape[2]
    return r * i * (t + k) < t * k * (i + r)


def _runs(roots: Factor, k: int, dtype: torch.dtype) -> Iterator[tuple[slice, Factor]]:
    r, b, t, o = roots.g.shape
    for run in runs(b, r * roots.elements if _forms(roots, k) else k * t * o):
        yield run, Factor(roots.a[run].to(dtype), roots.g[:, run].to(dtype))
