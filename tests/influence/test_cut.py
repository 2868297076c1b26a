import pytest
import torch
from torch import Tensor, nn

from influence import EKFAC, KFAC, Damping, Factor, Factors, InfluenceError, alone, by_name, select, spearman
from influence.curvature.cut import Cut
from tests.influence.cases import ekfac, fitted, loss_factors, mlp, over_positions, points, query_gradients

MODEL = nn.Sequential(nn.Linear(40, 30, bias=False)).double()
DAMPING = Damping("mean_eig", 0.1)


def orthogonal(size: int, seed: int) -> Tensor:
    normal = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(normal).Q


def drawn(inputs: Tensor, outputs: Tensor, count: int, seed: int) -> Factors:
    """Single positions whose inputs and output gradients are normal with these spectra in bases of their own."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(count, 40, generator=generator, dtype=torch.float64) * inputs.sqrt() @ orthogonal(40, 0)
    g = torch.randn(count, 30, generator=generator, dtype=torch.float64) * outputs.sqrt() @ orthogonal(30, 1)
    return {"0": Factor(a[:, None], g[:, None])}


def exactly(inputs: Tensor, outputs: Tensor) -> Factors:
    """1,200 points whose covariances are exactly these spectra in the same bases."""
    a = (40 * inputs).sqrt()[:, None] * orthogonal(40, 0)
    g = (30 * outputs).sqrt()[:, None] * orthogonal(30, 1)
    return {"0": Factor(a.repeat(30, 1)[:, None], g.repeat(40, 1)[:, None])}


def kfac(roots: Factors, cut: float | None) -> KFAC:
    curvature = KFAC(select(MODEL), cut=cut)
    factor = roots["0"]
    curvature.accumulate({"0": Factor(factor.a, factor.g[None])}, torch.ones(len(factor)))
    curvature.reduce(alone)
    curvature.finish(DAMPING)
    return curvature


def decaying(size: int) -> Tensor:
    return torch.arange(1, size + 1, dtype=torch.float64) ** -2.0


def flat_after(kept: int, size: int) -> Tensor:
    """A spectrum that is the same from some place on; the first ones hold .96 of the trace."""
    spectrum = torch.ones(size, dtype=torch.float64)
    spectrum[:kept] = 24 * (size - kept) / kept * torch.linspace(0.5, 1.5, kept, dtype=torch.float64)
    return spectrum


@pytest.mark.parametrize("seed", range(3))
def test_self_influence_ranks_as_without_a_cut_on_a_decaying_spectrum(seed: int) -> None:
    # Eigenvalues fall as 1/k^2; .99 of the trace is held by 24 of 40 inputs and 20 of 30 outputs.
    roots, losses = (drawn(decaying(40), decaying(30), 2000, 10 * seed + part) for part in range(2))
    cut, whole = kfac(roots, 0.99), kfac(roots, None)
    assert spearman(cut.own(losses).self_influence, whole.own(losses).self_influence) >= 0.999


@pytest.mark.parametrize(("share", "inputs", "outputs"), [(0.5, 1, 2), (0.65, 2, 2), (0.95, 3, 3)])
def test_a_cut_keeps_the_fewest_eigenvectors_that_hold_the_share(share: float, inputs: int, outputs: int) -> None:
    spectra = torch.tensor([0.1, 0.3, 0.6]).double(), torch.tensor([0.4, 0.15, 0.45]).double()
    eigenvalues = torch.outer(spectra[1], spectra[0])
    identity = torch.eye(3, dtype=torch.float64)
    found = Cut.at(share, identity, identity, eigenvalues, eigenvalues.expand(2, 3, 3))
    assert found.inputs.equal(identity[:, [2, 1, 0][:inputs]])
    assert found.outputs.equal(identity[:, [2, 0, 1][:outputs]])


def test_a_cut_is_exact_where_the_spectrum_is_flat_behind_it() -> None:
    roots = exactly(flat_after(5, 40), flat_after(4, 30))
    losses = drawn(decaying(40), decaying(30), 50, seed=2)
    found, truth = (kfac(roots, cut).own(losses, step=True) for cut in (0.95, None))
    # Within the flat part eigenvectors are arbitrary and eigenvalues agree to rounding.
    torch.testing.assert_close(found.self_influence, truth.self_influence, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.squared_step, truth.squared_step, rtol=1e-10, atol=0)


def test_a_cut_that_keeps_all_changes_nothing() -> None:
    model, batch = mlp(), points(30)
    losses = loss_factors(model, batch)
    curvature = EKFAC(select(model), cut=1 - 1e-12)
    fitted(curvature, model, batch)
    found, truth = (one.own(losses, step=True) for one in (curvature, ekfac(model, batch)))
    # Directions without curvature are left out, but here no gradient has a part in them: rounding alone.
    torch.testing.assert_close(found.self_influence, truth.self_influence, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.squared_step, truth.squared_step, rtol=1e-9, atol=0)


def test_a_cut_moves_neither_scores_nor_solutions() -> None:
    model, batch = mlp(), points(30)
    losses, queries = loss_factors(model, batch), query_gradients(model, batch).gradients
    cut, whole = EKFAC(select(model), cut=0.5), ekfac(model, batch)
    fitted(cut, model, batch)
    found, truth = (one.against(queries, own=True).score(losses) for one in (cut, whole))
    assert not torch.allclose(found.own.self_influence, truth.own.self_influence)  # the cut is felt
    torch.testing.assert_close(found.dots, truth.dots, rtol=0, atol=1e-10)  # rounding: another order of products
    assert all(cut.solve(queries)[name].equal(whole.solve(queries)[name]) for name in queries)


def test_sequences_are_never_cut() -> None:
    model, batch = over_positions(), points(30, positions=4)
    body = select(model, by_name("first", "second"))
    losses = loss_factors(model, batch, body)
    cut, whole = EKFAC(body, cut=0.5), EKFAC(body)
    for curvature in (cut, whole):
        fitted(curvature, model, batch)
    assert cut.own(losses).self_influence.equal(whole.own(losses).self_influence)


@pytest.mark.parametrize("cut", [0.0, 1.0, -0.1])
def test_a_share_outside_zero_and_one_is_refused(cut: float) -> None:
    with pytest.raises(InfluenceError, match="between 0 and 1"):
        KFAC(select(MODEL), cut=cut)
