import pytest
import torch
from torch import Tensor

from influence import Damping, Factor, Factors, GaussNewton, InfluenceError, alone, select
from influence.curvature import dual, gram, joint
from influence.curvature.dual import DualGaussNewton
from influence.curvature.gram import Rows, cross
from tests.influence.cases import (
    ABSOLUTE,
    conv_net,
    fitted,
    images,
    loss_factors,
    mlp,
    over_positions,
    points,
    read,
)

ROUNDING = {"rtol": 1e-10, "atol": 1e-9}  # float64, inverses of order 100


def roots_of(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Factors:
    roots = read(model, batch).roots
    assert roots is not None
    return roots


def on(curvature: GaussNewton | DualGaussNewton, roots: Factors) -> GaussNewton | DualGaussNewton:
    curvature.accumulate(roots, torch.ones(30))
    curvature.reduce(alone)
    curvature.finish(ABSOLUTE)
    return curvature


def kept(roots: Factors, present: Tensor) -> Factors:
    """The roots with zeros where they are not present, [B, R]."""
    return {name: Factor(f.a, f.g * present.T[:, :, None, None]) for name, f in roots.items()}


def solved(curvature: GaussNewton | DualGaussNewton) -> Tensor:
    layout = joint.Joint.of(select(mlp()))
    return layout.join(curvature.solve(layout.split(layout.probe(5))))


def test_the_gram_matrix_holds_the_inner_products_of_all_roots() -> None:
    for model, batch in (
        (mlp(), points(30)),
        (over_positions(), points(30, positions=4)),
        (conv_net(), images(30)),
    ):
        curvature = DualGaussNewton(select(model))
        fitted(curvature, model, batch)
        rows = joint.Joint.of(select(model)).materialise(roots_of(model, batch))  # [R, B, p]
        rows = rows.transpose(0, 1).flatten(0, 1)  # those of a point next to each other
        torch.testing.assert_close(curvature.gram, rows @ rows.T / 30, rtol=1e-12, atol=1e-12)


def test_roots_that_are_exactly_zero_have_no_row() -> None:
    roots, present = roots_of(mlp(), points(30)), torch.arange(90).view(30, 3) % 4 > 0
    present[7] = False  # nor does this point, but it counts
    ragged = kept(roots, present)
    found, expected = on(DualGaussNewton(select(mlp())), ragged), on(GaussNewton(select(mlp())), ragged)
    assert len(found.gram) == int(present.sum())
    torch.testing.assert_close(solved(found), solved(expected), **ROUNDING)


def test_a_cut_leaves_out_the_smallest_roots_up_to_its_share_of_the_trace() -> None:
    roots = roots_of(mlp(), points(30))
    sizes = joint.Joint.of(select(mlp())).materialise(roots).square().sum(2).T  # [B, R]
    order = sizes.flatten().argsort()
    for cut in (0.0, 0.05, 0.5):
        dropped = order[sizes.flatten()[order].cumsum(0) <= cut * sizes.sum()]
        present = torch.ones(90, dtype=torch.bool)
        present[dropped] = False
        found = on(DualGaussNewton(select(mlp()), cut=cut), roots)
        expected = on(GaussNewton(select(mlp())), kept(roots, present.view(30, 3)))
        assert len(found.gram) == int(present.sum())
        assert 1 - float(found.gram.trace()) / (float(sizes.sum()) / 30) <= cut + 1e-12
        torch.testing.assert_close(solved(found), solved(expected), **ROUNDING)
        factors = loss_factors(mlp(), points(30))
        torch.testing.assert_close(found.own(factors).self_influence, expected.own(factors).self_influence, **ROUNDING)


def test_a_number_of_rows_keeps_the_largest_roots() -> None:
    roots = roots_of(mlp(), points(30))
    sizes = joint.Joint.of(select(mlp())).materialise(roots).square().sum(2).T.flatten()  # [B R]
    for rows, cut in ((20, 0.0), (20, 0.05), (1000, 0.0), (1000, 0.5)):
        found = on(DualGaussNewton(select(mlp()), cut=cut, rows=rows), roots)
        of_cut = int((sizes.sort().values.cumsum(0) > cut * sizes.sum()).sum())
        assert len(found.gram) == min(rows, of_cut)
        assert float(found.gram.trace()) * 30 == pytest.approx(float(sizes.topk(len(found.gram)).values.sum()))


def test_cutting_the_work_into_runs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for model, batch in ((mlp(), points(30)), (over_positions(), points(30, positions=4))):
        first, second, factors = *(DualGaussNewton(select(model)) for _ in range(2)), loss_factors(model, batch)
        fitted(first, model, batch)
        expected, known = first.own(factors, step=True), first.diagnostics()
        with monkeypatch.context() as patch:
            patch.setattr(joint, "DENSE_ELEMENTS", 500)
            fitted(second, model, batch)
            found, diagnosed = second.own(factors, step=True), second.diagnostics()
        torch.testing.assert_close(second.gram, first.gram, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.self_influence, expected.self_influence, **ROUNDING)
        assert [one.effective_dimension for one in diagnosed.values()] == pytest.approx(
            [one.effective_dimension for one in known.values()]
        )


def test_inner_products_of_sequences_of_different_lengths() -> None:
    generator = torch.Generator().manual_seed(0)

    def rows(points: int, positions: int) -> Rows:
        a = torch.randn(points, positions, 4, generator=generator, dtype=torch.float64)
        s = torch.randn(2 * points, positions, 3, generator=generator, dtype=torch.float64)
        return Rows(a, s, torch.arange(points).repeat_interleave(2))

    for left, right in ((rows(3, 1), rows(4, 1)), (rows(3, 1), rows(4, 5)), (rows(3, 2), rows(4, 5))):
        truth = left.outputs(slice(0, 3)) @ right.outputs(slice(0, 3)).T
        formed = left.s.mT @ left.a[left.point]  # [N, o, i]
        torch.testing.assert_close(left.outputs(slice(0, 3)), formed.flatten(1))
        torch.testing.assert_close(cross(left, right), truth)
        torch.testing.assert_close(cross(left[2:5], right), truth[2:5])
        torch.testing.assert_close(gram.gram([left]), cross(left, left))


def test_another_damping_leaves_the_gram_matrix_as_it_was() -> None:
    curvature = on(DualGaussNewton(select(mlp())), roots_of(mlp(), points(30)))
    assert isinstance(curvature, DualGaussNewton)
    before = curvature.gram.clone()
    for value in (1e-3, 1.0):
        curvature.finish(Damping("absolute", value))
    assert curvature.gram.equal(before)


def test_too_many_or_no_roots_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    roots = roots_of(mlp(), points(30))
    monkeypatch.setattr(dual, "LARGEST", 80)
    with pytest.raises(InfluenceError, match=r"90 Fisher roots, the dual takes 1 to 80; raise its cut, .* or use PCG"):
        on(DualGaussNewton(select(mlp())), roots)
    on(DualGaussNewton(select(mlp()), cut=0.2), roots)
    with pytest.raises(InfluenceError, match="0 Fisher roots"):
        on(DualGaussNewton(select(mlp())), kept(roots, torch.zeros(30, 3)))


@pytest.mark.parametrize("cut", [-0.1, 1.0, float("nan")])
def test_a_cut_that_is_no_share_is_refused(cut: float) -> None:
    with pytest.raises(InfluenceError, match="give a share of the trace, at least 0 and below 1"):
        DualGaussNewton(select(mlp()), cut=cut)
