"""Ids, labels, groups and names that look like SQL, paths, markup or options are text and nothing else, everywhere."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.config import load
from flows.evidence import account_of
from flows.ledger_tables import print_account
from flows.printing import CONTROL, visible
from storage import score_store, selection
from storage.budgets import Budgets
from storage.ledger import Ledger
from storage.ledger_exchange import export, read_back
from storage.points import Manifest
from storage.proposals import Proposal
from storage.selection import select
from tests.flows.helpers import write_toml
from tests.storage.score_tables import HARMFUL, METADATA, Row, write

HOSTILE = (
    "'; DROP TABLE events; --",
    '" OR "1"="1',
    "a;b,c\td",
    "line\nbreak\r\n",
    "nul\0byte",
    "__proto__",
    "constructor",
    "</script><script>alert(1)</script>",
    "[/bold][red]",
    "\x1b[2Jcleared",
    "../../../etc/passwd",
    "/etc/passwd",
    "*?[a-z]",
    "%s {0} $1 ?",
    "{{ 7*7 }}",
    "$(touch pwned) `id`",
    "\\N",
    "NULL",
    "--by",
    "-1",
    " ",
    "\u202eright to left",
    "x" * 5000,
)
PRINTABLE = [text for text in HOSTILE if "\0" not in text]  # which no command line can carry


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cycle that removed a point of each of these names, with scores in which they are queries and groups as well."""
    file = write_toml(tmp_path_factory.mktemp("hostile [a-z] 'quoted'"))
    config = load(file)
    folder = config.workspace / "cycles" / "000001"
    manifest = Manifest.build(HOSTILE, HOSTILE, HOSTILE, range(len(HOSTILE)), HOSTILE)
    manifest.write(folder / "manifest.parquet")
    table = pa.table(
        {
            "point_id": list(HOSTILE),
            "cycle": [1] * len(HOSTILE),
            "in_train": [True] * len(HOSTILE),
            **{name: [-1.0] * len(HOSTILE) for name in ("loss", "influence", "self_influence")},
            "influence_se": [0.1] * len(HOSTILE),
            "group": list(HOSTILE),
            "label": pa.array(range(len(HOSTILE)), pa.int32()),
            "top_queries": [[{"query_id": text, "influence": -1.0}] for text in HOSTILE],
        }
    )
    score_store.write_chunk(folder / "scores", 0, 0, table, METADATA)
    score_store.finish(folder / "scores", 1)
    ledger = Ledger(config.workspace / "ledger.duckdb")
    ledger.open_cycle(1, "data", {"q": HOSTILE[0]}, {"tamis": HOSTILE[1]}, "string")
    rows = {"point_id": list(HOSTILE), "action": ["remove"] * len(HOSTILE), "reason": list(HOSTILE)}
    numbers = {name: [-1.0] * len(HOSTILE) for name in ("score", "threshold")}
    rows_table = pa.table({**rows, "new_label": pa.nulls(len(HOSTILE), pa.int32()), **numbers}).sort_by("point_id")
    proposal = Proposal(1, rows_table, "data", "scores", {"q": HOSTILE[0]})
    ledger.add_proposal(proposal)
    ledger.add_review(proposal.hash, "approve", HOSTILE[0], "cli", HOSTILE[1])
    ledger.apply_proposal(1, proposal.hash, manifest, HOSTILE[2], HOSTILE[3])
    ledger.record_event(1, "promoted", {"reason": HOSTILE[0]})
    return file


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_ledger_keeps_each_of_them_as_it_is(project: Path) -> None:
    ledger = Ledger(load(project).workspace / "ledger.duckdb")
    assert ledger.removed_as_of() == set(HOSTILE)
    assert ledger.verify().holds
    for text in HOSTILE:
        told = ledger.why(text)
        assert (told.point_id, told.removed) == (text, True)


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_an_export_and_its_import_keep_them_too(project: Path, tmp_path: Path, form: Any) -> None:
    ledger = Ledger(load(project).workspace / "ledger.duckdb")
    target = tmp_path / "it's [a-z] *"
    export(ledger, target, form)
    back = Ledger(tmp_path / "back; DROP" / "ledger.duckdb")
    assert read_back(target, back).head == ledger.head()
    assert back.removed_as_of() == set(HOSTILE)


def test_why_tells_of_each_of_them_in_lines_that_do_nothing_to_a_terminal(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in HOSTILE:
        account = account_of(project, text)
        assert account.scores is not None
        assert account.scores.harmed == ((text, -1.0),)
        print_account(account, as_json=False)
        told = capsys.readouterr().out
        assert not CONTROL.search(told.replace("\n", ""))
        assert told.startswith(f"point {visible(text)} is removed\n")


def test_commands_take_them_as_names(project: Path) -> None:
    file = ("--file", str(project))
    done = command("ledger", "restore", "--by", HOSTILE[0], "--dry-run", *file, "--", *PRINTABLE)
    assert f"{len(PRINTABLE)} points would be restored" in done.output
    for text in PRINTABLE[:3]:
        assert json.loads(command("ledger", "why", *file, "--json", "--", text).stdout)["point_id"] == text
        done = command("ledger", "restore", "--by", "ada", "--dry-run", *file, f"--query={text}")
        assert "1 point would be restored" in done.output
        assert command("approve", "--by", "ada", f"--reason={text}", *file, "--", text).exit_code != 0
    assert Ledger(load(project).workspace / "ledger.duckdb").removed_as_of() == set(HOSTILE), "nothing was done"


@pytest.mark.parametrize("arguments", [("ledger", "log"), ("ledger", "diff", "0", "1"), ("ledger", "regret")])
def test_tables_show_them_and_obey_none(project: Path, arguments: tuple[str, ...]) -> None:
    done = command(*arguments, "--file", str(project))
    assert done.exit_code == 0, done.output
    assert not CONTROL.search(done.output.replace("\n", ""))


def test_a_file_of_ids_is_read_line_by_line(project: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("'; DROP TABLE events; --\n__proto__\n", encoding="utf-8")
    done = command("ledger", "restore", "--by", "ada", "--dry-run", f"--from-file={ids}", "--file", str(project))
    assert "2 points would be restored" in done.output


def test_groups_classes_and_protected_ids_of_such_names_are_counted_and_protected(tmp_path: Path) -> None:
    folder = write(tmp_path / "it's [a]", [Row(text, -1.0, group=text) for text in HOSTILE])
    found = select(folder, [HARMFUL], Budgets(1.0, 1.0, 1.0, protected=HOSTILE[:2], protected_groups=HOSTILE[2:4]))
    assert set(found.rows["point_id"].to_pylist()) == set(HOSTILE[4:])
    assert set(selection.rows_of(folder, HOSTILE[:3])["point_id"].to_pylist()) == set(HOSTILE[:3])


@pytest.mark.parametrize("name", ["../x", "a'b", 'a"b', "a;b", "a/b", "", "a\nb"])
def test_a_data_set_whose_name_would_leave_mlflows_folder_or_filter_is_refused(name: str) -> None:
    from storage.errors import StorageError
    from storage.tracking import check_name

    with pytest.raises(StorageError, match="a name has letters, digits"):
        check_name(name)
