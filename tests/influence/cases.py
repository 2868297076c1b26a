"""Small problems whose truth is known, shared by the tests of the mathematics. Float64, seeded."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Barrier, Thread
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.functional import cross_entropy

from influence import (
    EKFAC,
    Damping,
    FactorSource,
    HeadGaussNewton,
    HeadOutputs,
    Share,
    alone,
    gradients,
    head_outputs,
    linear_blocks,
)

Batch = tuple[Tensor, Tensor]  # inputs, labels
ABSOLUTE = Damping("absolute", 1e-2)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def logits(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch[0])


class OverPositions(nn.Module):
    """Linear layers applied at each of T positions, then a mean over them: T > 1 for every block but the head."""

    def __init__(self, d: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(d, hidden)
        self.second = nn.Linear(hidden, hidden, bias=False)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()).mean(1))


def mlp(classes: int = 3, *, bias: bool = True, inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(5, 6, bias=bias), nn.ReLU(inplace=inplace), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, classes)
    return nn.Sequential(*layers).double()


def over_positions(classes: int = 3) -> OverPositions:
    torch.manual_seed(0)
    return OverPositions(5, 4, classes).double()


def points(count: int, classes: int = 3, *, positions: int | None = None, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 5) if positions is None else (count, positions, 5)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (count,), generator=generator)


def per_point(model: nn.Module, batch: Batch, outputs: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Per-point derivatives of outputs(logits, label) by torch.func, block name -> [B, ..., o, i]."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def one(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return outputs(functional_call(model, values, (x[None],))[0], y)

    jacobians = vmap(jacrev(one), (None, 0, 0))(parameters, *batch)
    truth = {}
    for block in linear_blocks(model):
        parts = [jacobians[f"{block.name}.weight"]]
        if block.module.bias is not None:
            parts.append(jacobians[f"{block.name}.bias"][..., None])
        truth[block.name] = torch.cat(parts, -1)
    return truth


def per_point_gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Of the loss, block name -> [B, o, i]."""
    return per_point(model, batch, lambda z, y: z.logsumexp(0) - z.gather(0, y[None])[0])


def label_gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """sqrt(p_y) times the gradient of log p_y for every label y, block name -> [B, C, o, i]."""

    def roots(z: Tensor, y: Tensor) -> Tensor:
        return z.detach().softmax(0).sqrt() * z.log_softmax(0)

    return per_point(model, batch, roots)


def gauss_newton(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The exact mean Gauss-Newton matrix of each block, [o i, o i]."""
    rows = {name: value.flatten(2).flatten(0, 1) for name, value in label_gradients(model, batch).items()}
    return {name: value.T @ value / len(batch[0]) for name, value in rows.items()}


def split(batch: Batch, size: int) -> list[Batch]:
    return list(zip(batch[0].split(size), batch[1].split(size), strict=True))


def loss_factors(model: nn.Module, batch: Batch) -> gradients.Factors:
    with FactorSource(model, linear_blocks(model)) as source:
        return source.pull(source.forward(loss, batch))


def ekfac(
    model: nn.Module,
    batch: Batch,
    damping: Damping = ABSOLUTE,
    *,
    weights: Tensor | None = None,
    size: int = 1000,
    share: Share | None = None,
    all_reduce: Callable[[Tensor], None] = alone,
) -> EKFAC:
    """EK-FAC on all linear layers; with a share, this rank's part of the batches."""
    share = share or Share()
    blocks = linear_blocks(model)
    curvature = EKFAC(blocks, share)
    weights = torch.ones(len(batch[0])) if weights is None else weights
    pieces = list(zip(split(batch, size), weights.split(size), strict=True))
    with FactorSource(model, blocks) as source:
        for _ in range(curvature.passes):
            for index in share.of(len(pieces)):
                piece, w = pieces[index]
                curvature.accumulate(gradients.label_factors(source, source.forward(logits, piece)), w)
            curvature.reduce(all_reduce)
    curvature.finish(damping)
    return curvature


def on_two_ranks(program: Callable[[Share, Callable[[Tensor], None]], Any]) -> list[Any]:
    """Run a program on two ranks at once, as threads whose all-reduce meets at a barrier."""
    barrier, slots, results = Barrier(2), [torch.empty(0)] * 2, [None] * 2

    def rank(r: int) -> None:
        def all_reduce(tensor: Tensor) -> None:
            slots[r] = tensor.clone()
            barrier.wait()
            tensor.copy_(slots[0] + slots[1])
            barrier.wait()

        results[r] = program(Share(r, 2), all_reduce)

    threads = [Thread(target=rank, args=(r,)) for r in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


@dataclass(frozen=True)
class Softmax:
    """A fitted softmax regression: minimiser of (1/n) sum_i w_i loss_i + (l2 / 2) ||W||^2, n fixed."""

    model: nn.Linear
    train: Batch
    queries: Batch
    l2: float

    def curvature(self) -> HeadGaussNewton:
        return head_curvature(self.model, self.train, Damping("absolute", self.l2))

    def refit(self, weights: Tensor) -> nn.Linear:
        """The minimiser under other weights [n], from the present one, to a gradient below 1e-10."""
        return newton(self.model, self.train, self.l2, weights)

    def query_losses(self, model: nn.Linear) -> Tensor:
        return loss(model, self.queries).detach()


def softmax_regression(n: int = 240, m: int = 40, l2: float = 1e-2) -> Softmax:
    """On scikit-learn's digits, pooled to 4 x 4 pixels."""
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x / 16).view(-1, 4, 2, 4, 2).mean((2, 4)).flatten(1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], torch.tensor(y)[order]
    start = nn.Linear(16, 10).double()
    nn.init.zeros_(start.weight)
    nn.init.zeros_(start.bias)
    train = x[:n], y[:n]
    model = newton(start, train, l2, torch.ones(n, dtype=torch.float64))
    return Softmax(model, train, (x[n : n + m], y[n : n + m]), l2)


def newton(start: nn.Linear, train: Batch, l2: float, weights: Tensor) -> nn.Linear:
    """Newton's method, with a Hessian of its own, until the gradient is below 1e-10."""
    x = torch.cat([train[0], train[0].new_ones(len(train[0]), 1)], 1)
    w = torch.cat([start.weight, start.bias[:, None]], 1).detach()  # [C, i]
    n, (c, i) = len(x), w.shape
    onehot = torch.nn.functional.one_hot(train[1], c)
    for _ in range(50):
        p = (x @ w.T).softmax(1)
        gradient = ((p - onehot) * weights[:, None]).T @ x / n + l2 * w
        if gradient.norm() < 1e-10:
            break
        lam = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        spread = torch.einsum("b,bcd,bi->bcdi", weights, lam, x).flatten(1, 2)  # [n, C C, i]
        hessian = torch.einsum("bki,bj->kij", spread, x).view(c, c, i, i).transpose(1, 2).reshape(c * i, c * i) / n
        hessian += l2 * torch.eye(c * i, dtype=w.dtype)
        w = w - torch.linalg.solve(hessian, gradient.flatten()).view_as(w)
    assert gradient.norm() < 1e-10
    model = nn.Linear(i - 1, c).double()
    model.load_state_dict({"weight": w[:, :-1].clone(), "bias": w[:, -1].clone()})
    return model


def read_head(model: nn.Linear, batch: Batch) -> HeadOutputs:
    (block,) = linear_blocks(model)
    with FactorSource(model, [block]) as source:
        return head_outputs(source, block, source.forward(logits, batch))


def head_curvature(model: nn.Linear, batch: Batch, damping: Damping, weights: Tensor | None = None) -> HeadGaussNewton:
    (block,) = linear_blocks(model)
    curvature = HeadGaussNewton(block)
    curvature.accumulate(read_head(model, batch), torch.ones(len(batch[0])) if weights is None else weights)
    curvature.reduce(alone)
    curvature.finish(damping)
    return curvature
