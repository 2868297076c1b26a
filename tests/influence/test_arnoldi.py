import pytest
import torch
from torch import Tensor, nn

from influence import Damping, DualGaussNewton, Factor, Influence, InfluenceError, alone, select, spearman
from influence.curvature import arnoldi as module
from influence.curvature.arnoldi import Arnoldi, Spectrum, arnoldi
from influence.curvature.joint import Joint
from tests.influence.cases import ABSOLUTE, TASK, drawn, fitted
from tests.influence.test_exact import MODELS, damped_inverse, inverse, matrix

SPREAD = torch.logspace(1, -2, 60, dtype=torch.float64)  # distinct eigenvalues


def known(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    """A symmetric matrix of a given spectrum, and its eigenvectors in columns."""
    size = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    return basis @ torch.diag(eigenvalues) @ basis.T, basis


def found(full: Tensor, iterations: int, rank: int | None = None, columns: int = 1) -> Spectrum:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(columns, len(full), dtype=torch.float64, generator=generator).to(full.dtype)
    return arnoldi(lambda x: x @ full, start, iterations, rank)


def of_spectrum(eigenvalues: list[float], rank: int, *, complement: bool = True) -> tuple[Arnoldi, Tensor]:
    """On a block whose Gauss-Newton matrix has these eigenvalues and five more that are 0; the matrix itself, too."""
    count = len(eigenvalues)
    full, basis = known(torch.tensor([*eigenvalues, *[0.0] * 5], dtype=torch.float64))
    rows = basis[:, :count].T * (count * torch.tensor(eigenvalues, dtype=torch.float64)).sqrt()[:, None]
    blocks = select(nn.Linear(count + 5, 1, bias=False))
    curvature = Arnoldi(blocks, rank, complement=complement)
    roots = Factor(rows[:, None], torch.ones(1, count, 1, 1, dtype=torch.float64))
    curvature.accumulate({blocks[0].name: roots}, torch.ones(count))
    curvature.reduce(alone)
    curvature.finish(Damping("absolute", 0.1))
    return curvature, full


def solves(curvature: Arnoldi, v: Tensor) -> Tensor:
    """Of one block, [k, p]."""
    (name,) = curvature.blocks
    return curvature.solve({name: v[:, None]})[name][:, 0]


def of_mlp(rank: int, *, complement: bool = True) -> Arnoldi:
    model, batch = MODELS["mlp"]
    curvature = Arnoldi(select(model), rank, complement=complement)
    fitted(curvature, model, batch)
    return curvature


@pytest.mark.parametrize("columns", [1, 8, 60])
def test_at_full_rank_values_and_vectors_are_those_of_the_matrix(columns: int) -> None:
    full, basis = known(SPREAD)
    spectrum = found(full, 60, columns=columns)
    torch.testing.assert_close(spectrum.values, SPREAD, rtol=1e-8, atol=0)
    cosines = (spectrum.vectors @ basis).diagonal().abs()
    torch.testing.assert_close(cosines, torch.ones(60, dtype=torch.float64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("columns", [1, 4])
def test_the_basis_stays_orthogonal_where_plain_lanczos_loses_it(columns: int) -> None:
    # A few values far above the others converge first; what then comes back of them is rounding.
    full, _ = known(torch.cat([torch.logspace(8, 4, 10), torch.linspace(1, 0.1, 190)]).double())
    vectors = found(full, 120, columns=columns).vectors
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(len(vectors), dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_largest_values_come_first() -> None:
    full, _ = known(SPREAD)
    spectrum = found(full, 40, rank=5)
    torch.testing.assert_close(spectrum.values, SPREAD[:5], rtol=1e-6, atol=0)
    assert spectrum.vectors.shape == (5, 60)


@pytest.mark.parametrize("columns", [1, 3])
def test_it_ends_at_an_invariant_subspace(columns: int) -> None:
    full, _ = known(torch.tensor([5.0] * 10 + [2.0] * 20 + [0.1] * 30, dtype=torch.float64))
    seen: list[int] = []

    def product(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x @ full

    start = torch.randn(columns, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    spectrum = arnoldi(product, start, 60)
    assert seen == [columns] * 3  # as many steps as there are distinct values
    expected = torch.tensor([5.0, 2.0, 0.1], dtype=torch.float64).repeat_interleave(columns)
    torch.testing.assert_close(spectrum.values, expected)
    torch.testing.assert_close(full @ spectrum.vectors.T, spectrum.vectors.T * expected)


def test_columns_that_depend_on_each_other_count_once() -> None:
    full, _ = known(SPREAD)
    start = torch.randn(2, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    twice = torch.cat([start, start.sum(0, keepdim=True)])
    torch.testing.assert_close(arnoldi(lambda x: x @ full, twice, 60).values, SPREAD, rtol=1e-8, atol=0)


def test_negative_and_negligible_values_are_dropped() -> None:
    full, basis = known(torch.tensor([3.0, 1.0, 1e-15, 0.0, -1e-15, -2.0, -5.0], dtype=torch.float64))
    spectrum = found(full, 7)
    torch.testing.assert_close(spectrum.values, torch.tensor([3.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close((spectrum.vectors @ basis[:, :2]).abs(), torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_start_without_a_direction_is_refused(value: float) -> None:
    with pytest.raises(InfluenceError, match="starts from 0 or what is not finite"):
        arnoldi(lambda x: x, torch.full((2, 5), value), 3)


def test_a_float32_operator_is_iterated_on_in_float32() -> None:
    full, _ = known(SPREAD)
    spectrum = found(full.float(), 60, rank=20, columns=4)
    assert spectrum.vectors.dtype == torch.float32
    torch.testing.assert_close(spectrum.values, SPREAD[:20], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", MODELS)
def test_with_every_direction_of_curvature_it_is_the_inverse(case: str) -> None:
    model, batch = MODELS[case]
    curvature = Arnoldi(select(model), 200)
    fitted(curvature, model, batch)
    torch.testing.assert_close(inverse(curvature, case), damped_inverse(case), rtol=1e-8, atol=1e-8)
    (diagnosed,) = curvature.diagnostics().values()
    eigenvalues = torch.linalg.eigvalsh(matrix(case)).clamp(min=0)
    assert diagnosed.residual < 1e-10
    dimension = float((eigenvalues / (eigenvalues + ABSOLUTE.value)).sum())
    assert diagnosed.effective_dimension == pytest.approx(dimension, rel=1e-8)
    assert diagnosed.condition == pytest.approx(float(eigenvalues[-1]) / ABSOLUTE.value + 1, rel=1e-8)


@pytest.mark.parametrize("complement", [True, False], ids=["complement", "published"])
def test_the_error_is_smaller_at_rank_40_than_at_10(complement: bool) -> None:
    truth, g = damped_inverse("mlp"), torch.linalg.eigh(matrix("mlp")).eigenvectors[:, -60:]  # what has curvature
    ten, forty = (
        float((inverse(of_mlp(rank, complement=complement), "mlp") @ g - truth @ g).norm()) for rank in (10, 40)
    )
    assert forty < ten


def test_the_published_form_is_the_pseudo_inverse_on_what_it_keeps() -> None:
    eigenvalues, vectors = torch.linalg.eigh(matrix("mlp"))
    kept = vectors[:, -10:]
    expected = kept @ torch.diag(1 / (eigenvalues[-10:] + ABSOLUTE.value)) @ kept.T
    torch.testing.assert_close(inverse(of_mlp(10, complement=False), "mlp"), expected, rtol=1e-8, atol=1e-8)


def test_the_complement_is_exact_where_the_rest_of_the_spectrum_is_flat() -> None:
    curvature, full = of_spectrum([8.0, 4.0, 2.0, *[0.5] * 10], 3)
    gradients = torch.randn(4, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) @ full
    truth = torch.linalg.solve(full + 0.1 * torch.eye(18, dtype=torch.float64), gradients.T).T
    torch.testing.assert_close(solves(curvature, gradients), truth, rtol=1e-8, atol=1e-8)
    published, _ = of_spectrum([8.0, 4.0, 2.0, *[0.5] * 10], 3, complement=False)
    assert (solves(published, gradients) - truth).norm() > 0.1 * truth.norm()


def test_what_the_complement_takes_for_the_rest_is_the_mean_that_its_roots_see() -> None:
    rest = torch.logspace(0, -2, 100, dtype=torch.float64)
    curvature, _ = of_spectrum([8.0, 4.0, *rest.tolist()], 2)
    other = 1 / float(torch.linalg.eigvalsh(solves(curvature, torch.eye(107, dtype=torch.float64)))[-1]) - 0.1
    # Eight probes: a standard error of tr R^2 of sqrt(2 tr R^4 / 8) / tr R^2, a tenth of it.
    assert other == pytest.approx(float(rest.square().sum() / rest.sum()), rel=0.3)
    assert other > 1.5 * float(rest.mean())


def test_the_signs_of_the_vectors_do_not_matter() -> None:
    curvature = of_mlp(10)
    before = inverse(curvature, "mlp")
    signs = 1 - 2 * (torch.arange(10) % 2).double()[:, None]
    curvature.spectrum = Spectrum(curvature.spectrum.values, curvature.spectrum.vectors * signs)
    torch.testing.assert_close(inverse(curvature, "mlp"), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("complement", [True, False], ids=["complement", "published"])
def test_the_residual_is_that_of_the_matrix_itself(complement: bool) -> None:
    curvature, joint = of_mlp(10, complement=complement), Joint.of(select(MODELS["mlp"][0]))
    probe, damped = joint.probe(), matrix("mlp") + ABSOLUTE.value * torch.eye(79, dtype=torch.float64)
    back = probe @ inverse(curvature, "mlp") @ damped
    (diagnosed,) = curvature.diagnostics().values()
    assert diagnosed.residual == pytest.approx(float((back - probe).norm() / probe.norm()), rel=1e-9)
    assert diagnosed.residual > 0.1


def test_fewer_columns_at_a_time_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = of_mlp(10).spectrum
    for columns in (1, 3):
        monkeypatch.setattr(module, "COLUMNS", columns)
        torch.testing.assert_close(of_mlp(10).spectrum.values, expected.values, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("rank", "iterations"), [(0, 10), (11, 10)])
def test_a_rank_that_iterations_cannot_give_is_refused(rank: int, iterations: int) -> None:
    with pytest.raises(InfluenceError, match=f"rank {rank} of 10 iterations: give a rank of at least 1"):
        Arnoldi(select(MODELS["mlp"][0]), rank, iterations)


def of_wide(complement: bool) -> tuple[Tensor, Tensor]:
    """Scores of 60 iterations on 1,255 parameters, rank 20, and the exact ones: most directions are not seen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 5)).double().eval()
    train, queries = drawn(200, (20,), 5, seed=1), drawn(20, (20,), 5, seed=2)
    blocks, scores = select(model), []
    for curvature in (Arnoldi(blocks, 20, 60, complement=complement), DualGaussNewton(blocks)):
        with Influence(model, TASK, curvature, blocks) as influence:
            influence.fit([train], ABSOLUTE)
            scores.append(influence.pairs([train], [queries], own=False).influence.flatten())
    return scores[0], scores[1]


def test_far_from_the_whole_spectrum_the_complement_keeps_the_scores_and_the_published_form_does_not() -> None:
    assert spearman(*of_wide(complement=True)) > 0.85  # .91; the published form .36
    assert spearman(*of_wide(complement=False)) < 0.5


@pytest.mark.parametrize("columns", [1, 8])
def test_the_largest_values_are_found_in_a_small_part_of_the_space(columns: int) -> None:
    full, _ = known(torch.arange(1, 401).double() ** -1.5)
    values = found(full, 80, rank=5, columns=columns).values
    torch.testing.assert_close(values, torch.arange(1, 6).double() ** -1.5, rtol=1e-6, atol=0)
