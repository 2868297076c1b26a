"""MLflow: one run per cycle, a nested run per arm and seed, one registered model whose alias `champion` is in service.

Everything is found again by tags, so a stage that is run again after a kill writes to the same runs and the same model
version. The store is a server, or a sqlite file and a folder in the workspace, both by absolute path: a relative one
would depend on where the command was called from. Tables are written whole here: MLflow's own `log_table` appends on
every call.

    tags of a cycle's run: tamis.cycle, tamis.dataset_sha256, tamis.changed, tamis.ledger_head, and those of a review
                          (storage/review_tags.py)
    tags of an arm's run:  tamis.arm, tamis.seed, mlflow.parentRunId
    tags of a validation's run: tamis.study, tamis.validation
    of the first and the last on a server, which several workspaces may share: tamis.workspace
"""

import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

import pyarrow as pa

import storage.mlflow_quiet  # noqa: F401

# isort: split
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

from storage.checkpoints import Checkpoint
from storage.errors import StorageError
from storage.mlflow_store import Store, file_store, server_store, store_errors, weights
from storage.score_store import ScoreSet
from storage.system_metrics import PREFIX

CHAMPION = "champion"
OWNER = "tamis.workspace"
MOST_METRICS = 15
MOST_ROWS = 1000
NAME = re.compile(r"\w[\w .-]*")

Value: TypeAlias = str | int | float | bool
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class ModelVersion:
    """A registered model version; `source` is the folder or URI with its model.safetensors (`Tracker.weights`)."""

    model: str
    version: int
    source: str
    run: str
    digest: str


def check_name(name: str) -> None:
    """Check that MLflow can name an experiment and a registered model so.

    Raises:
        StorageError: the name is empty or has other characters than letters, digits, space and . _ -
    """
    if not NAME.fullmatch(name):
        raise StorageError(
            f"the data set is named {name!r}; a name has letters, digits, spaces, '.', '_' and '-' and begins with a "
            "letter, a digit or '_', e.g. my-data"
        )


def _named(method: Callable[P, R]) -> Callable[P, R]:
    """Say in one line what MLflow, its database or the disk refused."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        tracker: Any = args[0]
        try:
            return method(*args, **kwargs)
        except store_errors() as error:  # the store that is known now: __init__ begins without one
            raise tracker.store.said(error) from error

    return call


def _all_named(kind: type[R]) -> type[R]:
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        setattr(kind, name, _named(method))
    return kind


@_all_named
class Tracker:
    """The MLflow store of one workspace and one experiment.

    Args:
        workspace: The folder that holds mlflow.db and mlartifacts, or copies of what a server has.
        experiment: Name of the data set (`check_name`).
        server: URI of an MLflow server; empty: the store in the workspace.
        identity: Tells the workspace's runs on a server from those of another one that gave the experiment's name.
    """

    store = Store("", None, server=False)

    def __init__(self, workspace: Path, experiment: str, server: str = "", identity: str = "") -> None:
        check_name(experiment)
        self.workspace = workspace.resolve()
        self.workspace.mkdir(parents=True, exist_ok=True)
        self.store = server_store(server) if server else file_store(self.workspace)
        self.uri = self.store.uri
        self._own = {OWNER: identity} if identity else {}
        self._client = MlflowClient(self.uri)
        found = self._client.get_experiment_by_name(experiment)
        self._experiment: str = (
            found.experiment_id if found else self._client.create_experiment(experiment, self.store.artifacts)
        )

    def is_anothers(self) -> bool:
        """Whether the first cycle under the experiment's name was that of another workspace."""
        cycles = f"tags.`tamis.cycle` LIKE '%' AND tags.`{OWNER}` LIKE '%'"
        found = self._client.search_runs([self._experiment], cycles, max_results=1, order_by=["start_time ASC"])
        return bool(self._own and found) and found[0].data.tags[OWNER] != self._own[OWNER]

    def cycle_run(self, cycle: int, dataset_sha256: str, parameters: Mapping[str, Value]) -> str:
        """The run of a cycle, made at the first call.

        MLflow's parameters never change: one that is given another value later, because the settings were edited while
        the cycle was open, keeps the first and shows the new one in the tag `tamis.changed`. The data set may be
        another one where the run was made and the cycle then not opened.

        Returns:
            Its run id.
        """
        tags = {"tamis.cycle": str(cycle), **self._own}
        run = self._run(tags, {"mlflow.runName": f"cycle {cycle}"}, parameters)
        self._client.set_tag(run, "tamis.dataset_sha256", dataset_sha256)
        return run

    def run_of(self, cycle: int) -> str | None:
        """The run of a cycle; None where there is none, e.g. because the store was lost since."""
        where = _where({"tamis.cycle": str(cycle), **self._own})
        found = self._client.search_runs([self._experiment], where, max_results=1)
        return str(found[0].info.run_id) if found else None

    def page(self, run: str) -> str:
        """Where the server shows a run; empty for a store in the workspace, which no server shows by itself."""
        return f"{self.uri}/#/experiments/{self._experiment}/runs/{run}" if self.store.server else ""

    def arm_run(
        self, cycle_run: str, arm: str, seed: int, parameters: Mapping[str, Value], metrics: Mapping[str, float]
    ) -> str:
        """The finished run of one arm and seed, nested in its cycle's run.

        Returns:
            Its run id.
        """
        tags = {"mlflow.parentRunId": cycle_run, "tamis.arm": arm, "tamis.seed": str(seed)}
        run = self._run(tags, {"mlflow.runName": f"{arm}, seed {seed}"}, parameters)
        self.log_metrics(run, metrics)
        self.finish(run)
        return run

    def validation_run(self, study: str, inputs_sha256: str, parameters: Mapping[str, Value]) -> str:
        """The run of one study of a validation, made at the first call with these inputs.

        Returns:
            Its run id.
        """
        tags = {"tamis.study": study, "tamis.validation": inputs_sha256, **self._own}
        return self._run(tags, {"mlflow.runName": f"validation, {study}"}, parameters)

    def _run(self, identity: Mapping[str, str], more: Mapping[str, str], parameters: Mapping[str, Value]) -> str:
        found = self._client.search_runs([self._experiment], _where(identity), max_results=1)
        run = found[0] if found else self._client.create_run(self._experiment, tags={**identity, **more})
        given, known = {key: str(value) for key, value in parameters.items()}, run.data.params
        self._client.log_batch(run.info.run_id, params=[Param(k, v) for k, v in given.items() if k not in known])
        changed = {key: value for key, value in given.items() if known.get(key, value) != value}
        if changed:
            self._client.set_tag(run.info.run_id, "tamis.changed", json.dumps(changed, sort_keys=True))
        return str(run.info.run_id)

    def log_metrics(self, run: str, metrics: Mapping[str, float]) -> None:
        """Write metrics; more than a few push everything else off the page of a run.

        A metric that is written again with another value shows the newer one; with the same value nothing is added.

        Raises:
            StorageError: the run would have more than 15 beside those of the system, which have a tab of their own.
        """
        found = self._client.get_run(run)
        names = {name for name in set(found.data.metrics) | set(metrics) if not name.startswith(PREFIX)}
        if len(names) > MOST_METRICS:
            raise StorageError(
                f"{len(names)} metrics for one run; at most {MOST_METRICS}: put the others in the report"
            )
        changed = {name: float(value) for name, value in metrics.items() if found.data.metrics.get(name) != value}
        # by step, not by the clock: MLflow shows the highest (step, time, value), and two writes may share a time
        step = {name: self._next_step(run, name) if name in found.data.metrics else 0 for name in changed}
        start = int(found.info.start_time)
        self._client.log_batch(run, metrics=[Metric(name, value, start, step[name]) for name, value in changed.items()])

    def _next_step(self, run: str, metric: str) -> int:
        return 1 + max(int(point.step) for point in self._client.get_metric_history(run, metric))

    def log_dataset(self, run: str, name: str, sha256: str, points: int, source: str) -> None:
        """Show the data set as the input of a run; the digest on the page is a label, the tag is the full hash."""
        dataset = Dataset(
            name=name,
            digest=sha256[:12],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"points": points, "sha256": sha256}),
        )
        tags = [InputTag("mlflow.data.context", "train"), InputTag("tamis.dataset_sha256", sha256)]
        self._client.log_inputs(run, [DatasetInput(dataset, tags)])

    def log_scores(self, run: str, scores: ScoreSet) -> None:
        """Copy finished score shards and their manifest to `scores/`."""
        for path in (*scores.shards, scores.folder / "MANIFEST.json"):
            self._client.log_artifact(run, str(path), "scores")

    def log_table(self, run: str, name: str, rows: pa.Table) -> None:
        """Write rows to `review/<name>.json`, a table that MLflow pages and sorts.

        Args:
            run: A cycle's run.
            name: Of the file.
            rows: At most 1,000, the first to be read first; lists are written as JSON text.
        """
        if rows.num_rows > MOST_ROWS:
            raise StorageError(f"{rows.num_rows} rows for a table to be read; give the first {MOST_ROWS}")
        path = f"review/{name}.json"
        data = [[json.dumps(v) if isinstance(v, list | dict) else v for v in row.values()] for row in rows.to_pylist()]
        self._client.log_dict(run, {"columns": rows.column_names, "data": data}, path)
        known, entry = json.loads(self.tags(run).get("mlflow.loggedArtifacts", "[]")), {"path": path, "type": "table"}
        if entry not in known:
            self._client.set_tag(run, "mlflow.loggedArtifacts", json.dumps([*known, entry]))

    def log_figure(self, run: str, name: str, png: bytes) -> None:
        """Write a PNG to `review/<name>.png`."""
        self._write(run, f"{name}.png", png)

    def log_report(self, run: str, html: str) -> None:
        """Write the report to `review/00_report.html`, the first artifact a reviewer sees."""
        self._write(run, "00_report.html", html.encode())

    def _write(self, run: str, name: str, data: bytes) -> None:
        with self._client._log_artifact_helper(run, f"review/{name}") as path:
            Path(path).write_bytes(data)

    def describe(self, run: str, markdown: str) -> None:
        """Set the description on the page of a run."""
        self._client.set_tag(run, "mlflow.note.content", markdown)

    def anchor(self, run: str, head: str) -> None:
        """Keep the head of the ledger's hash chain where the ledger is not: `tamis ledger verify --head` takes it."""
        self._client.set_tag(run, "tamis.ledger_head", head)

    def tags(self, run: str) -> dict[str, str]:
        """The tags of a run."""
        return dict(self._client.get_run(run).data.tags)

    def set_tag(self, run: str, key: str, value: str) -> None:
        """Set a tag of a run; an empty value deletes one that is there."""
        if value:
            self._client.set_tag(run, key, value)
        else:
            self._client.delete_tag(run, key)

    def version_tags(self, run: str, model: str) -> dict[int, dict[str, str]]:
        """The tags of a run's versions of a registered model, by number."""
        found = self._client.search_model_versions(f"name = '{model}' and run_id = '{run}'")
        return {int(version.version): dict(version.tags) for version in found}

    def set_version_tag(self, model: str, version: int, key: str, value: str) -> None:
        """Set a tag of a model version; an empty value deletes one that is there."""
        if value:
            self._client.set_model_version_tag(model, str(version), key, value)
        else:
            self._client.delete_model_version_tag(model, str(version), key)

    def describe_version(self, version: ModelVersion, markdown: str) -> None:
        """Set the description on the page of a model version."""
        self._client.update_model_version(version.model, str(version.version), markdown)

    def log_failure(self, run: str, reason: str) -> None:
        """Show what failed last; a run that ends well keeps it."""
        self._client.set_tag(run, "tamis.failure", reason)

    def finish(self, run: str, failed: bool = False) -> None:
        """End a run."""
        self._client.set_terminated(run, "FAILED" if failed else "FINISHED")

    def register(self, run: str, checkpoint: Checkpoint, model: str) -> ModelVersion:
        """Copy a checkpoint's parameters and manifest to a run and register them as a version of `model`.

        Nothing is pickled: the version's source is a folder with model.safetensors. The version of the same run and
        digest is returned if it is there.
        """
        if not self._client.search_registered_models(f"name = '{model}'"):
            self._client.create_registered_model(model)
        for found in self._client.search_model_versions(f"name = '{model}' and run_id = '{run}'"):
            if found.tags.get("tamis.checkpoint") == checkpoint.digest:
                return _version(found)
        folder = f"model/{checkpoint.digest[:12]}"  # its own: a version in service is never overwritten
        for path in (checkpoint.tensors, checkpoint.path / "MANIFEST.json"):
            self._client.log_artifact(run, str(path), folder)
        source = f"{self._client.get_run(run).info.artifact_uri}/{folder}"
        return _version(
            self._client.create_model_version(model, source, run, tags={"tamis.checkpoint": checkpoint.digest})
        )

    def set_champion(self, version: ModelVersion) -> None:
        """Put a version into service; the alias moves in one step."""
        self._client.set_registered_model_alias(version.model, CHAMPION, str(version.version))

    def champion(self, model: str) -> ModelVersion | None:
        """The version in service; None when there is none yet."""
        if not self._client.search_registered_models(f"name = '{model}'"):
            return None
        version = self._client.get_registered_model(model).aliases.get(CHAMPION)
        return None if version is None else _version(self._client.get_model_version(model, version))

    def weights(self, version: ModelVersion) -> Path:
        """The folder on this machine with a version's model.safetensors and manifest.

        Raises:
            CheckpointDamaged: what the server has is not what was registered.
        """
        return weights(self.store, version.source, version.digest, self.workspace / "champion")


def _where(tags: Mapping[str, str]) -> str:
    return " AND ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())


def _version(found: Any) -> ModelVersion:
    return ModelVersion(found.name, int(found.version), found.source, found.run_id, found.tags["tamis.checkpoint"])
