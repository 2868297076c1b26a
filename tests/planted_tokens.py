"""Errors in how texts are asked, planted one at a time (`planted`)."""

import pytest
import torch
from torch import Tensor

from influence import Fisher
from influence.tokens import Tokens
from tests.planted import seen_by

INVARIANT = "test_neither_padding_nor_the_batch_nor_its_order_changes_a_score"


@seen_by("test_tokens", "test_sampled_roots_add_up_to_the_gauss_newton_matrix_of_the_mean_loss")
@seen_by("test_tokens", "test_empirical_roots_are_the_loss_gradient_times_the_square_root_of_its_targets")
def roots_over_t_instead_of_its_square_root(patch: pytest.MonkeyPatch) -> None:
    right = Tokens.cotangents

    def wrong(tokens: Tokens, fisher: Fisher | None = None, keys: Tensor | None = None) -> Tensor:
        found = right(tokens, fisher, keys)
        found[1:] *= tokens._counts.to(found.dtype).rsqrt()[:, None, None]
        return found

    patch.setattr(Tokens, "cotangents", wrong)


@seen_by("test_tokens", "test_a_texts_gradient_is_that_of_its_own_mean_loss")
def targets_shifted_once_more(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("influence.reader.Tokens", lambda logits, targets: Tokens(logits, targets.roll(1, 1)))


@seen_by("test_tokens", INVARIANT, "sampled")
def padding_counted(patch: pytest.MonkeyPatch) -> None:
    def wrong(logits: Tensor, targets: Tensor) -> Tokens:
        tokens = Tokens(logits, targets)
        tokens._counts = torch.full_like(tokens._counts, targets.shape[1])
        return tokens

    patch.setattr("influence.reader.Tokens", wrong)


@seen_by("test_tokens", INVARIANT, "sampled")
def labels_drawn_by_the_row_of_the_batch(patch: pytest.MonkeyPatch) -> None:
    right = Tokens._numbers
    patch.setattr(Tokens, "_numbers", lambda tokens, fisher, keys: right(tokens, fisher, torch.arange(len(keys))))
