"""Errors of layouts, and of tables held by rows, planted one at a time; each with the check that must see it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from influence import EKFAC, layouts, removal
from influence.calls import Call, Capture, sequence
from influence.layouts import EmbeddingLayout, TransposedLayout
from influence.sparse import TableFactor
from tests.planted import seen_by

EVERY_BLOCK = "test_every_block_of_a_padded_batch_has_the_gradients_of_each_point_alone"


@seen_by("test_transformers", EVERY_BLOCK, "gpt2", False)
def bias_of_conv1d_forgotten(patch: pytest.MonkeyPatch) -> None:
    def read(layout: TransposedLayout, call: Call) -> Capture:
        a = sequence(call.input(2))
        return Capture(torch.cat([a, torch.zeros_like(a[..., :1])], 2), sequence)

    patch.setattr(TransposedLayout, "read", read)


@seen_by("test_transformers", "test_a_step_reaches_the_parameters_as_they_lie", "gpt2")
def conv1d_moved_as_if_its_weight_were_o_by_i(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(removal, "TransposedLayout", type(None))


@seen_by("test_layouts", "test_factors_are_per_point_gradients", "embedding, padding")
@seen_by("test_sparse", "test_factors_of_a_large_table_are_per_point_gradients", "items")
def padding_row_counted(patch: pytest.MonkeyPatch) -> None:
    def tokens(call: Call, module: Any) -> Tensor:
        given = call.input(1).long()
        return given.reshape(len(given), -1)

    patch.setattr(layouts, "tokens_of", tokens)


@seen_by("test_sparse", "test_scores_are_those_of_the_one_hot_form", EKFAC)
def padding_in_the_output_covariance(patch: pytest.MonkeyPatch) -> None:
    right = EmbeddingLayout.read
    patch.setattr(EmbeddingLayout, "read", lambda layout, call: Capture(right(layout, call).a, sequence))


@seen_by("test_sparse", "test_factors_of_a_large_table_are_per_point_gradients", "items")
def last_of_repeated_tokens_kept(patch: pytest.MonkeyPatch) -> None:
    right = TableFactor.of

    def wrong(tokens: Tensor, g: Tensor, table: int) -> TableFactor:
        again = (tokens[:, :, None] == tokens[:, None]).triu(1).any(2)
        return right(tokens.masked_fill(again, -1), g, table)

    patch.setattr(TableFactor, "of", wrong)


@seen_by("test_sparse", "test_where_items_repeat_the_output_covariance_is_that_of_whole_gradients")
def repeated_tokens_as_rows_of_their_own(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TableFactor, "of", lambda tokens, g, table: TableFactor(tokens, g, table))


@seen_by("test_sparse", "test_queries_solved_in_parts_on_three_ranks_score_as_those_solved_at_once")
def parts_of_sparse_queries_exchanged(patch: pytest.MonkeyPatch) -> None:
    right = torch.cat
    patch.setattr("influence.exchange.joined", lambda parts: right(list(parts)[::-1]).coalesce())


@seen_by(
    "test_transformers",
    "test_a_vocabulary_that_is_also_the_head_is_one_block_with_both_contributions",
    ("transformer.wte",),
)
def tied_head_without_its_own_calls(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("influence.gradients.hooked", tuple)
