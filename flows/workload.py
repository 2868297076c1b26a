"""What the user brings: the Workload protocol, its loader and its batches.

A workload is one Python class, named in tamis.toml as a built-in (`digits`), as `file.py:Class` beside the TOML, or as
`package.module:Class`. A sample is whatever `dataset[i]` returns; a batch is what torch's `default_collate` makes of a
list of samples, unless the workload has a `collate`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import default_collate

from flows.config import Config
from flows.errors import BadInput
from flows.modules import module_of
from flows.sections.training import TrainingConfig
from storage.points import PointId

BUILT_IN: Mapping[str, str] = {
    "causal_lm": "flows.workloads.causal_lm:CausalLM",
    "digits": "flows.workloads.digits:Digits",
    "fashion_mnist": "flows.workloads.fashion_mnist:FashionMnist",
    "ranking": "flows.workloads.ranking:Ranking",
    "text_classification": "flows.workloads.text.classification:TextClassification",
    "tiny": "flows.workloads.tiny:Tiny",
}
CACHE_BYTES = 512 * 2**20
HOME = "home"
CACHE = "cache"
"""In the workspace: what workloads have made of their data."""


@dataclass(frozen=True)
class Home:
    """Where a workload's files are.

    Attributes:
        folder: Of the TOML; paths among the options are meant from there.
        cache: A folder for what can be made again.
    """

    folder: Path
    cache: Path


class PointSet(Protocol):
    """A map-style data set: `ids` and `labels` run beside the samples; `groups` is optional, and `labels` of texts.

    Optional method, for a set that holds its samples as tensors: `batch_of(rows: Tensor) -> batch`, the tensors that
    the collation of these rows would give, made at once. Optional attribute, for samples that a batch fills up to the
    longest: `lengths`, by which alike ones are judged together.
    """

    @property
    def ids(self) -> Sequence[int] | Sequence[str]:
        """Unique and stable."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """Given labels, integers in `0 … C-1`."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Workload(Protocol):
    """The model, the three sets and the per-point loss of one classification task.

    A workload without classes, a language model, has instead of `labels` a method `targets(batch) -> Tensor[B, T]`, the
    token that the logits `[B, T, V]` predict at each position or -100 for none; its loss is their mean cross-entropy.

    A constructor with the parameter `home` gets a `Home`; it is no option. What such a workload keeps in `home.cache`
    is its own, unless it has a method `cached() -> Collection[Path]`, the files and folders there that it uses: then
    `tamis gc` removes all others.

    Optional methods: `collate(samples) -> batch`; `inputs(batch) -> Tensor[B, d]`, what nearest neighbours are measured
    on (default: the first floating tensor of the batch, flattened); `with_labels(batch, labels) -> batch`, the same
    points with other labels (default: put into the one integer tensor of the batch that equals `labels(batch)`);
    `describe(point_id) -> str | bytes`, a text or a PNG for the report, and `describe_query(query_id)`, the same of a
    query, whose id may also be that of a train point; `facets() -> Mapping[str, Sequence]`, by name a value for each
    train point in the order of its ids (a text, number, time, truth value, set of texts, or None), by which the report
    tells where the harm is; `tokens(point_id) -> Sequence[str]`, a text for each position of a train point in a batch
    of its own, by which the report shows where in it the influence lies; `truth() -> Mapping[point_id, label]`, the
    true labels where they are known, read by the report alone; `variants() -> Mapping[str, Workload]`, by name, the
    same points and queries with a deeper or wider model, for `tamis validate --fragility`; `for_folds() ->
    (Workload, recipe)`, a cheaper model on the same batches for the out-of-fold models (a linear head on features that
    stay, say), and the keys of `[training]` that it is trained by instead of the cycle's.
    """

    def model(self) -> nn.Module:
        """A new model, initialised from torch's global seed; no weights from a network."""
        ...

    def points(self) -> PointSet:
        """The train set: the points that may be removed."""
        ...

    def queries(self) -> PointSet:
        """Clean held-out points that influence is measured on."""
        ...

    def holdout(self) -> PointSet:
        """The points that judge promotion and that influence never sees."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of each point in nats, without a regulariser: `[B]`."""
        ...

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Class scores `[B, C]`; of a language model `[B, T, V]`."""
        ...

    def labels(self, batch: Any) -> Tensor:
        """Given labels `[B]`, integers in `0 … C-1`."""
        ...


REQUIRED = ("model", "points", "queries", "holdout", "loss", "logits", "labels")
"""Methods; `targets` may stand for `labels`."""


def load_workload(config: Config) -> Workload:
    """Build the workload that the configuration names.

    Raises:
        BadInput: The file, module, class, a required method or an option is missing or not accepted.
    """
    entry = BUILT_IN.get(config.workload.entry, config.workload.entry)
    where, colon, name = entry.rpartition(":")
    if not colon:
        raise BadInput(
            f"workload.class = {entry!r}: give a built-in ({', '.join(BUILT_IN)}), 'file.py:Class' or 'module:Class'"
        )
    module = module_of(where, config.file.parent)
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        classes = [
            key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__
        ]
        raise BadInput(
            f"workload.class = {entry!r}: {where} has no class {name}" + (f" (it has {classes})" * bool(classes))
        )
    either = {"labels": "targets"} if callable(getattr(found, "targets", None)) else {}
    if missing := [method for method in REQUIRED if not callable(getattr(found, either.get(method, method), None))]:
        raise BadInput(f"workload {name} lacks {', '.join(missing)}: the protocol is in flows/workload.py")
    options = _options(found, config)
    try:
        inspect.signature(found).bind(**options)
    except TypeError as error:
        raise BadInput(f"workload.options: {name} does not accept them: {error}") from error
    try:
        return cast(Workload, found(**options))
    except ValueError as error:
        raise BadInput(f"workload.options: {error}") from error
    except TypeError as error:
        raise BadInput(f"workload.options: {name} cannot be made of them; is one of another type? {error}") from error


def _options(found: type, config: Config) -> dict[str, Any]:
    """What a workload is made with."""
    options = dict(config.workload.options)
    if HOME not in inspect.signature(found).parameters:
        return options
    if HOME in options:
        raise BadInput(f"workload.options.{HOME}: {found.__name__} is given the TOML's folder; leave the option out")
    return options | {HOME: Home(config.file.parent, config.workspace / CACHE)}


class Sample:
    """Some points of a set, at even distances.

    Args:
        points: The set.
        count: How many, at most.
    """

    def __init__(self, points: PointSet, count: int) -> None:
        count = min(count, len(points))
        self._points, self._rows = points, [row * len(points) // count for row in range(count)]
        self.ids: list[Any] = [points.ids[row] for row in self._rows]
        if (labels := getattr(points, "labels", None)) is not None:
            self.labels = [int(labels[row]) for row in self._rows]
        groups = getattr(points, "groups", None)
        self.groups = None if groups is None else [groups[row] for row in self._rows]
        whole: Callable[[Tensor], Any] | None = getattr(points, "batch_of", None)
        if whole is not None:
            rows = torch.tensor(self._rows)
            self.batch_of = lambda places: whole(rows[places])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Any:
        return self._points[self._rows[index]]


class Batches:
    """Batches of one data set by row index.

    A set with `batch_of` makes them itself. Another is held in memory once where it is small and made of tensors; only
    torch's own collation is sure to treat each sample alike in every batch; a padding one, say, is not.

    Args:
        points: The data set.
        collate: Makes a batch of a list of samples.

    Attributes:
        held: Bytes of the set that is held in memory.

    Raises:
        BadInput: `batch_of` gives another batch than the collation.
    """

    def __init__(self, points: PointSet, collate: Callable[[list[Any]], Any]) -> None:
        self._points, self._collate = points, collate
        self._batch_of: Callable[[Tensor], Any] | None = getattr(points, "batch_of", None)
        self._whole: Any = None
        if len(points) and self._batch_of is not None:
            self._check(self._batch_of)
        elif len(points) and collate is default_collate:
            leaves = tree_leaves(collate([points[0]]))
            small = all(isinstance(leaf, Tensor) for leaf in leaves) and (
                sum(leaf.nbytes for leaf in leaves) * len(points) <= CACHE_BYTES
            )
            if small:
                self._whole = collate([points[row] for row in range(len(points))])
        self.held = sum(leaf.nbytes for leaf in tree_leaves(self._whole) if isinstance(leaf, Tensor))

    def take(self, rows: Tensor) -> Any:
        """The batch of the given rows, in their order."""
        if self._batch_of is not None:
            return self._batch_of(rows)
        if self._whole is not None:
            return tree_map(lambda leaf: leaf[rows], self._whole)
        return self._collated(rows)

    def _collated(self, rows: Tensor) -> Any:
        return self._collate([self._points[row] for row in rows.tolist()])

    def _check(self, batch_of: Callable[[Tensor], Any]) -> None:
        rows = torch.arange(len(self._points))[[-1, 0]]
        made, collated = tree_leaves(batch_of(rows)), tree_leaves(self._collated(rows))
        if len(made) != len(collated) or not all(map(_same, made, collated)):
            raise BadInput(
                "batch_of(rows) gives another batch than the samples of these rows: it must give the tensors of their "
                "collation, in the order of the rows"
            )


def _same(made: Any, collated: Any) -> bool:
    both = isinstance(made, Tensor) and isinstance(collated, Tensor)
    return both and made.dtype == collated.dtype and made.equal(collated)


def collate_of(workload: Workload) -> Callable[[list[Any]], Any]:
    """The workload's own `collate`, or torch's default."""
    return cast(Callable[[list[Any]], Any], getattr(workload, "collate", default_collate))


def seeded_model(workload: Workload, seed: int) -> nn.Module:
    """A new model whose initial weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return workload.model()


def for_folds(workload: Workload, training: TrainingConfig) -> tuple[Workload, TrainingConfig]:
    """What the out-of-fold models are made and trained by: what the workload says, or the cycle's own."""
    own = getattr(workload, "for_folds", None)
    if own is None:
        return workload, training
    light, recipe = own()
    if unknown := sorted(set(recipe) - set(TrainingConfig.model_fields)):
        raise BadInput(f"for_folds() of {type(workload).__name__}: {unknown[0]} is no key of [training]")
    # these models see all their points, in one process; turn_over names modules that a light model need not have
    plain = {"ranks": 1, "accumulation": 1, "prune_while_learning": None, "turn_over": ()}
    given = training.model_dump() | (plain if light is not workload else {}) | dict(recipe)
    try:
        return light, TrainingConfig.model_validate(given)
    except ValidationError as error:
        wrong = "; ".join(
            ": ".join([*map(str, one["loc"][:1]), one["msg"].removeprefix("Value error, ")]) for one in error.errors()
        )
        raise BadInput(f"for_folds() of {type(workload).__name__}: {wrong}; mend the recipe it gives") from error


def check_losses(losses: Tensor, rows: Tensor, ids: Sequence[PointId]) -> None:
    """Refuse a loss that is reduced, or not finite.

    Raises:
        BadInput: Names the shape, or the points.
    """
    if losses.shape != rows.shape:
        raise BadInput(
            f"loss(model, batch) gave shape {list(losses.shape)} for {len(rows)} points: it must give one loss per "
            f"point, shape [{len(rows)}] (use reduction='none')"
        )
    if not bool(losses.isfinite().all()):
        bad = [ids[row] for row in rows[~losses.detach().isfinite()][:3].tolist()]
        raise BadInput(f"the loss of point {', '.join(map(str, bad))} is not finite: mend the point or the model")
