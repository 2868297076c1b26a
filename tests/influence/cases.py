"""Small problems whose truth is known, shared by the tests of the mathematics. Float64, seeded."""

from collections.abc import Callable, Iterator
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
    KFAC,
    Blocks,
    Curvature,
    Damping,
    Factors,
    Fisher,
    GaussNewton,
    Queries,
    Reader,
    Reading,
    Share,
    Task,
    alone,
    each,
    fit,
    select,
)

Batch = tuple[Tensor, Tensor]  # inputs, labels
ABSOLUTE = Damping("absolute", 1e-2)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def logits(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch[0])


TASK: Task[Batch] = Task(logits, lambda batch: batch[1])


class OverPositions(nn.Module):
    """Linear layers applied at each of T positions, then a mean over them: T > 1 for every block but the head.

    With a padding value, positions that hold nothing else are left out of the mean.
    """

    def __init__(self, d: int, hidden: int, classes: int, padding: float | None = None) -> None:
        super().__init__()
        self.padding = padding
        self.first = nn.Linear(d, hidden)
        self.second = nn.Linear(hidden, hidden, bias=False)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        inside = (x != self.padding).any(2, keepdim=True) if self.padding is not None else torch.ones_like(x[..., :1])
        return self.head((self.second(self.first(x).tanh()) * inside).sum(1) / inside.sum(1))


def mlp(classes: int = 3, *, bias: bool = True, inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(5, 6, bias=bias), nn.ReLU(inplace=inplace), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, classes)
    return nn.Sequential(*layers).double().eval()


def over_positions(classes: int = 3, *, padding: float | None = None) -> OverPositions:
    torch.manual_seed(0)
    return OverPositions(5, 4, classes, padding).double().eval()


def normed(classes: int = 3) -> nn.Sequential:
    """With a block whose input basis is the identity."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, classes)).double().eval()


def conv_net(classes: int = 3) -> nn.Sequential:
    """For images [2, 5, 5]: convolutions with bias and padding, and without bias but with stride; then a head."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, stride=2, bias=False)
    layers = first, nn.Tanh(), second, nn.Tanh(), nn.Flatten(), nn.Linear(16, classes)
    return nn.Sequential(*layers).double().eval()


def points(count: int, classes: int = 3, *, positions: int | None = None, seed: int = 1) -> Batch:
    """Vectors [5], or sequences of them [positions, 5]."""
    return drawn(count, (5,) if positions is None else (positions, 5), classes, seed)


def images(count: int, classes: int = 3, *, seed: int = 1) -> Batch:
    """For `conv_net`."""
    return drawn(count, (2, 5, 5), classes, seed)


def drawn(count: int, shape: tuple[int, ...], classes: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (count,), generator=generator)


def per_point(model: nn.Module, batch: Batch, outputs: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Per-point derivatives of outputs(logits, label) by torch.func, block name -> [B, ..., o, i]."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def one(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return outputs(functional_call(model, values, (x[None],))[0], y)

    jacobians = vmap(jacrev(one), (None, 0, 0))(parameters, *batch)
    names = {id(value): name for name, value in model.named_parameters()}
    truth = {}
    for block in select(model):
        weight = jacobians[names[id(block.module.weight)]]  # [B, ..., o, and whatever makes up i]
        leading = weight.shape[: weight.ndim - block.module.weight.ndim + 1]
        parts = [weight.reshape(*leading, -1)]
        if block.module.bias is not None:
            parts.append(jacobians[names[id(block.module.bias)]][..., None])
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


def read(model: nn.Module, batch: Batch, blocks: Blocks | None = None, fisher: Fisher | None = None) -> Reading:
    """A batch of train points with the roots of their Gauss-Newton matrices."""
    with Reader(model, TASK, blocks or select(model), fisher) as reader:
        return reader.train(batch, 0, torch.arange(len(batch[0])))


def loss_factors(model: nn.Module, batch: Batch, blocks: Blocks | None = None) -> Factors:
    with Reader(model, TASK, blocks or select(model)) as reader:
        return reader.losses(batch).losses


def query_gradients(model: nn.Module, batch: Batch, blocks: Blocks | None = None) -> Queries:
    with Reader(model, TASK, blocks or select(model)) as reader:
        return each([reader.queries(batch)], len(batch[0]))


def fitted(
    curvature: Curvature,
    model: nn.Module,
    batch: Batch,
    damping: Damping = ABSOLUTE,
    *,
    weights: Tensor | None = None,
    size: int = 1000,
    share: Share | None = None,
    all_reduce: Callable[[Tensor], None] = alone,
) -> None:
    """Fit a curvature on its blocks of a model; with a share, on this rank's part of the batches of `size` points."""
    share = share or Share()
    weights = torch.ones(len(batch[0])) if weights is None else weights
    pieces = list(zip(split(batch, size), weights.split(size), strict=True))
    blocks = tuple(block for block in select(model) if block.name in curvature.blocks)
    with Reader(model, TASK, blocks) as reader:

        def passes() -> Iterator[tuple[Reading, Tensor]]:
            for index in share.of(len(pieces)):
                piece, w = pieces[index]
                yield reader.train(piece, index, torch.arange(len(w))), w

        fit([curvature], passes, all_reduce)
    curvature.finish(damping)


def ekfac(model: nn.Module, batch: Batch, damping: Damping = ABSOLUTE, **how: Any) -> EKFAC:
    """EK-FAC on all blocks, fitted as `fitted` does."""
    curvature = EKFAC(select(model), how.get("share") or Share())
    fitted(curvature, model, batch, damping, **how)
    return curvature


def kronecker(kind: type[KFAC], model: nn.Module, batch: Batch, damping: Damping = ABSOLUTE) -> KFAC:
    curvature = kind(select(model))
    fitted(curvature, model, batch, damping)
    return curvature


def eigenvalues(curvature: KFAC, name: str) -> Tensor:
    """Lambda, [o, i]."""
    return curvature.state[name].eigenvalues.value


def inverse(curvature: KFAC, name: str) -> Tensor:
    """The damped inverse of a block as a matrix, [o i, o i]."""
    shape = eigenvalues(curvature, name).shape
    identity = torch.eye(shape.numel(), dtype=torch.float64).view(-1, *shape)
    return curvature.solve({name: identity})[name].flatten(1)


def basis(curvature: KFAC, name: str) -> Tensor:
    """Qs (x) Qa, [o i, o i]."""
    block = curvature.state[name]
    inputs = eigenvalues(curvature, name).shape[1]
    qa = torch.eye(inputs, dtype=torch.float64) if block.inputs is None else block.inputs.basis
    return torch.kron(block.outputs.basis, qa)


def rebuild(curvature: KFAC, name: str, damping: float = 0.0) -> Tensor:
    """The matrix of a block, [o i, o i]."""
    q = basis(curvature, name)
    return q @ torch.diag(eigenvalues(curvature, name).flatten() + damping) @ q.T


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

    def curvature(self) -> GaussNewton:
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
    start = nn.Linear(16, 10).double().eval()
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
    model = nn.Linear(i - 1, c).double().eval()
    model.load_state_dict({"weight": w[:, :-1].clone(), "bias": w[:, -1].clone()})
    return model


def head_curvature(model: nn.Linear, batch: Batch, damping: Damping, weights: Tensor | None = None) -> GaussNewton:
    curvature = GaussNewton(select(model))
    fitted(curvature, model, batch, damping, weights=weights)
    return curvature
