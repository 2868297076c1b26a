"""What a command writes of itself: JSON lines with cycle, stage and rank, system metrics, and no secret anywhere."""

import json
import stat
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from mlflow import MlflowClient

from flows import cycle as flow
from flows.agents import Launch
from flows.config import load
from flows.errors import StageFailed
from flows.inspection import open_ledger
from flows.launch import _explain
from flows.logs import LOG, JsonLines, stage_logged
from flows.redaction import hide, redacted, secrets_in
from flows.running import run_file
from storage.errors import StorageError
from storage.files import atomic_write_json
from storage.tracking import MOST_METRICS
from tests.flows.helpers import run_here, write_toml

KEY, PASSWORD, MINE = "hunter2-hunter2", "swordfish", "correct-horse-battery"
ADDRESS = f"https://ada:{PASSWORD}@example.org/data"
WORKLOAD = """
from tests.flows.blobs import Blobs

class Keyed(Blobs):
    def __init__(self, api_key, source, max_tokens):
        super().__init__()
"""


@pytest.fixture(scope="module")
def file(one_rank: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cycle that failed once, of a message that gives the secrets away, and then went to its end."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "workload.py").write_text(WORKLOAD)
    options = {"api_key": KEY, "source": ADDRESS, "max_tokens": 5}
    made = write_toml(folder, "workload.py:Keyed", options)

    def refused(*_: Any) -> None:
        raise StageFailed(f"score: rank 0: the key {KEY} is refused by {ADDRESS}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.stages.run_ranks", run_here)
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
        patch.setenv("PASSWORD_OF_MINE", MINE)
        with patch.context() as broken:
            broken.setattr(flow, "score", refused)
            with pytest.raises(StageFailed, match=r"the key \*\*\* is refused by https://ada:\*\*\*@example.org/data"):
                run_file(made)
        assert run_file(made).state == "promoted"
        yield made


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (file.parent / "ws" / "logs" / LOG).read_text().splitlines()]


@pytest.mark.slow
def test_every_line_has_time_level_cycle_stage_rank_and_message(file: Path) -> None:
    assert {tuple(line) for line in lines(file)} == {("time", "level", "cycle", "stage", "rank", "message")}


@pytest.mark.slow
def test_every_stage_says_when_it_begins_and_ends_and_one_that_fails_why(file: Path) -> None:
    said = [(line["stage"], line["message"].split(" after")[0]) for line in lines(file)]
    stages = ["open_cycle", "train", "score", "propose", "preview", "review", "apply", "retrain", "judge", "close"]
    for stage in stages:
        assert (stage, "begins") in said
        assert (stage, "ended") in said
    assert said.count(("train", "begins")) == 2
    [failed] = [line for line in lines(file) if line["level"] == "ERROR"]
    assert (failed["stage"], failed["cycle"]) == ("refused", 1)
    assert (
        failed["message"]
        == "failed: StageFailed: score: rank 0: the key *** is refused by https://ada:***@example.org/data"
    )


@pytest.mark.slow
def test_lines_of_a_cycle_carry_its_number_and_phases_their_stage(file: Path) -> None:
    assert {line["cycle"] for line in lines(file) if line["stage"] not in ("open_cycle",)} == {1}
    said = [(line["stage"], line["rank"], line["message"].split(" after")[0]) for line in lines(file)]
    assert ("open_cycle", None, "reading the data: 1") in said
    assert ("train", 0, "train ended") in said
    assert ("score", 0, "score ended") in said


def test_what_ranks_fail_of_carries_their_rank(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    launch = Launch("train", tmp_path, ranks=2, logs=tmp_path, heartbeat_seconds=1)
    for rank, message in enumerate(["lost the other", "the loss broke"]):
        atomic_write_json(launch.file(rank, "error"), {"kind": "failed", "message": message, "time": 2 - rank})
    with pytest.raises(StageFailed, match="rank 1: the loss broke"):
        _explain(launch, 1)
    formatted = [json.loads(JsonLines(frozenset()).format(record)) for record in caplog.records]
    assert [(line["rank"], line["message"]) for line in formatted] == [
        (1, "train: the loss broke"),
        (0, "train: lost the other"),
    ]


@pytest.mark.slow
def test_no_secret_is_in_any_file_of_the_workspace_but_the_plans_which_only_their_owner_reads(file: Path) -> None:
    workspace = file.parent / "ws"
    files = [path for path in workspace.rglob("*") if path.is_file()]
    told = {path for path in files if any(text.encode() in path.read_bytes() for text in (KEY, PASSWORD, MINE))}
    assert {path.parent.name for path in told} == {"plans"}
    assert not [path for path in told if MINE.encode() in path.read_bytes()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in told} == {0o600}
    with duckdb.connect(str(workspace / "ledger.duckdb"), read_only=True) as con:  # which packs its texts
        for (table,) in con.sql("SELECT table_name FROM duckdb_tables()").fetchall():
            rows = str(con.sql(f'FROM "{table}"').fetchall())
            assert not any(text in rows for text in (KEY, PASSWORD, MINE)), table
        assert "***" in str(con.sql("SELECT config_json FROM cycles").fetchall())


@pytest.mark.slow
def test_what_failed_stands_in_the_ledger_and_in_mlflow_without_the_secret(file: Path) -> None:
    ledger = open_ledger(file)
    [failed] = [event for event in ledger.events(1) if event.state == "failed"]
    assert "the key *** is refused" in failed.detail["reason"]
    run = MlflowClient(f"sqlite:///{file.parent / 'ws' / 'mlflow.db'}").get_run(str(ledger.cycle(1).mlflow_run_id))
    assert "the key *** is refused" in run.data.tags["tamis.failure"]


@pytest.mark.slow
def test_system_metrics_of_the_machine_have_a_tab_and_leave_the_page_of_the_run_its_few(file: Path) -> None:
    run = str(open_ledger(file).cycle(1).mlflow_run_id)
    found = MlflowClient(f"sqlite:///{file.parent / 'ws' / 'mlflow.db'}").get_run(run)
    names = set(found.data.metrics)
    system = {name for name in names if name.startswith("system/")}
    assert "system/cpu_utilization_percentage" in system
    assert len(names - system) <= MOST_METRICS < len(names)
    assert found.info.status == "FINISHED"


def test_what_stands_under_names_of_secrets_and_passwords_in_addresses_are_hidden_and_nothing_else() -> None:
    given = {
        "api_key": KEY,
        "options": {"Password": PASSWORD, "token": {"value": "abcd"}, "max_tokens": 5, "tokenizer": "words"},
        "db": {"password": 12345678, "secret": 1.5, "refresh_token": None, "credentials": False},
        "keep": {"baseline": 3},
        "command": ["python", "train.py", ADDRESS],
        "secret": "",
    }
    assert redacted(given) == {
        "api_key": "***",
        "options": {"Password": "***", "token": {"value": "***"}, "max_tokens": 5, "tokenizer": "words"},
        "db": {"password": "***", "secret": "***", "refresh_token": None, "credentials": False},
        "keep": {"baseline": 3},
        "command": ["python", "train.py", "https://ada:***@example.org/data"],
        "secret": "",
    }
    assert secrets_in(given) == {KEY, PASSWORD, "abcd", "12345678"}, "1.5 is too short to be looked for"
    assert hide(f"{KEY} at {ADDRESS}", secrets_in({"api_key": KEY})) == "*** at https://ada:***@example.org/data"


@pytest.mark.parametrize(
    "name",
    [
        *("token", "hf_token", "accessToken", "BEARER-TOKEN", "apikey", "aws_secret_access_key", "private_key"),
        *("db_passwd", "client_secret", "credential"),
    ],
)
def test_a_name_of_a_secret_is_known(name: str) -> None:
    assert redacted({name: "abcd"}) == {name: "***"}


@pytest.mark.parametrize("name", ["key", "label_key", "pad_token", "tokenizer", "max_tokens", "monkey", "token_id"])
def test_other_keys_and_tokens_are_no_secrets(name: str) -> None:
    assert redacted({name: "abcd"}) == {name: "abcd"}


class Refused(StorageError):
    pass


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (Refused(f"{KEY} is refused"), Refused, "*** is refused"),
        (ValueError(f"no such key: {KEY}"), StageFailed, "ValueError: no such key: ***"),
        (KeyError("weights"), KeyError, "'weights'"),
    ],
)
def test_no_error_leaves_a_stage_with_a_secret(error: Exception, kind: type[Exception], said: str) -> None:
    def stage() -> None:
        raise error

    with pytest.raises(kind) as raised:
        stage_logged(stage, 1, frozenset([KEY]))()
    assert str(raised.value) == said
    assert KEY not in "".join(traceback.format_exception(raised.value))


def test_nor_with_one_in_what_led_to_it() -> None:
    def stage() -> None:
        try:
            raise OSError(f"{ADDRESS} does not answer")
        except OSError as error:
            raise StageFailed("the data cannot be read") from error

    with pytest.raises(StageFailed, match=r"^the data cannot be read$") as raised:
        stage_logged(stage, 1, frozenset())()
    assert PASSWORD not in "".join(traceback.format_exception(raised.value))


def test_stages_are_keyed_by_the_secret_as_it_is(tmp_path: Path) -> None:
    dumps = [load(write_toml(tmp_path, options={"api_key": key})).model_dump() for key in (KEY, "another-key")]
    assert dumps[0] != dumps[1]
    assert redacted(dumps[0]) == redacted(dumps[1])
