import pytest
import torch

from influence import Damping, InfluenceError, select
from tests.influence.cases import ABSOLUTE, fitted, gauss_newton
from tests.influence.test_exact import MODELS
from tests.left_out.diagonal import Diagonal


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("damping", [ABSOLUTE, Damping("mean_eig", 0.1)], ids=["absolute", "mean_eig"])
def test_it_is_the_damped_diagonal_of_the_gauss_newton_matrix(case: str, damping: Damping) -> None:
    model, batch = MODELS[case]
    blocks = select(model)
    curvature = Diagonal(blocks)
    fitted(curvature, model, batch, damping, size=7)
    ones = {block.name: torch.ones(1, *block.weight_shape, dtype=torch.float64) for block in blocks}
    solved, diagnosed = curvature.solve(ones), curvature.diagnostics()
    for name, full in gauss_newton(model, batch).items():
        diagonal = full.diagonal()
        added = damping.resolve(float(diagonal.mean()))
        torch.testing.assert_close(solved[name].flatten(), 1 / (diagonal + added), rtol=1e-12, atol=0)
        assert diagnosed[name].damping == pytest.approx(added, rel=1e-12)
        assert diagnosed[name].effective_dimension == pytest.approx(float((diagonal / (diagonal + added)).sum()))
        assert diagnosed[name].condition == pytest.approx(float((diagonal.max() + added) / (diagonal.min() + added)))


def test_a_float32_model_has_the_same_diagonal_up_to_its_precision() -> None:
    model, (x, y) = MODELS["positions"]
    found = []
    for kind in (torch.float64, torch.float32):
        curvature = Diagonal(select(model))
        fitted(curvature, model.to(kind), (x.to(kind), y))
        found.append(curvature.diagnostics())
    model.double()
    for name, one in found[0].items():
        assert found[1][name].effective_dimension == pytest.approx(one.effective_dimension, rel=1e-5)


def test_a_block_that_was_not_fitted_is_refused() -> None:
    model, batch = MODELS["mlp"]
    curvature = Diagonal(select(model))
    fitted(curvature, model, batch)
    with pytest.raises(InfluenceError, match="block 'other' was not fitted; there are 0, 2, 4"):
        curvature.solve({"other": torch.zeros(1, 2, 2)})
