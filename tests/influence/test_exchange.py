from collections import Counter
from collections.abc import Callable
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from influence import Broadcast, Curvature, PairScorer, Queries, Share, share_queries
from tests.influence.cases import conv_net, ekfac, images, loss_factors, mlp, points, query_gradients

MODELS = {"mlp": (mlp(), points(30), points(7)), "conv": (conv_net(), images(30), images(7))}


def on_ranks(world: int, program: Callable[[Share, Broadcast], Any]) -> list[Any]:
    """Run a program on several ranks at once, as threads whose broadcasts meet at a barrier."""
    barrier, sent, results = Barrier(world), [torch.empty(0)], [None] * world

    def rank(r: int) -> None:
        def broadcast(tensor: Tensor, source: int) -> None:
            if r == source:
                sent[0] = tensor.clone()
            barrier.wait(60)
            tensor.copy_(sent[0])
            barrier.wait(60)

        results[r] = program(Share(r, world), broadcast)

    threads = [Thread(target=rank, args=(r,)) for r in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return results


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_queries_solved_in_parts_on_any_ranks_score_as_those_solved_at_once(case: str, world: int) -> None:
    model, train, queries = MODELS[case]
    curvatures: list[Curvature] = [ekfac(model, train)]
    whole = query_gradients(model, queries)
    parts = torch.arange(7).split(3)  # the last is short, and four ranks are more than there are parts
    read: list[int] = []

    def part(index: int) -> Queries:
        read.append(index)
        rows = parts[index]
        gradients = {name: one[rows] for name, one in whole.gradients.items()}
        return Queries(gradients, whole.doubt[rows], whole.labels[rows])

    sizes, losses = [len(rows) for rows in parts], loss_factors(model, train)
    scorers = on_ranks(world, lambda share, send: share_queries(curvatures, part, sizes, 30, share, send))
    assert Counter(read) == Counter([0, 1, 2] + [0] * (world > 1)), "every rank makes as many passes as the others"
    truth = PairScorer(curvatures[0], whole, 30).score(losses)
    for [scorer] in scorers:
        found = scorer.score(losses)
        for name in ("influence", "classification", "self_influence"):
            torch.testing.assert_close(getattr(found, name), getattr(truth, name), rtol=1e-4, atol=1e-9)  # float32
