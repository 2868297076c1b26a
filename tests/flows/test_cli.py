"""The command as people call it: a process, its exit code, and what it leaves."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.flows.helpers import BLOBS, tamis, write_toml

HEAVY = {"torch", "deepspeed", "mlflow", "prefect", "pandas"}


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, whose content is the last process that held it."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("arguments", [["--help"], ["ledger", "--help"], ["run", "--help"], ["--version"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    done = tamis(*arguments, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    imported = set(re.findall(r"\|\s+([a-z_]+)$", done.stderr, re.MULTILINE))
    assert "typer" in imported
    assert not imported & HEAVY


def test_the_version_is_said(tmp_path: Path) -> None:
    assert re.fullmatch(r"tamis \d+\.\d+\.\d+\n", tamis("--version", cwd=tmp_path).stdout)


def refused(done: Any, *parts: str) -> None:
    """Exit code 2 and one line."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("tamis: ")
    for part in parts:
        assert part in done.stderr


TEXTS = {"data": "../texts/texts.jsonl", "model": "../texts/bert"}
BAD_INPUT: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown key": ({"training": {"epoch": 3}}, ("training.epoch: unknown key", "epochs")),
    "budget of 0": ({"pruning": {"budget": 0}}, ("pruning.budget = 0", "greater than 0")),
    "too many ranks": ({"scoring": {"ranks": 999}}, ("scoring.ranks = 999", "give at most")),
    "missing file": ({"entry": "mine.py:None"}, ("mine.py", "no such file")),
    "missing class": ({"entry": BLOBS + "y"}, ("has no class Blobsy", "'Blobs'")),
    "duplicate ids": ({"options": {"fault": "duplicate ids"}}, ("train", "0")),
    "overlapping sets": ({"options": {"fault": "overlap"}}, ("train", "query")),
    "reduced loss": ({"options": {"fault": "reduced"}}, ("one loss per point", "reduction='none'")),
    "NaN loss": ({"options": {"fault": "nan"}}, ("the loss of point 7 is not finite",)),
    "no column": (
        {"entry": "text_classification", "options": TEXTS | {"text": "body"}},
        ("texts.jsonl, line 1: no column 'body'", "'text', 'label'"),
    ),
    "no tokenizer": (
        {"entry": "text_classification", "options": TEXTS | {"model": "../texts/mute"}},
        ("mute has no tokenizer", "vocab.txt", "save_pretrained"),
    ),
    "unknown block": ({"scoring": {"blocks": ["encoder.*"]}}, ("'encoder.*'", "hidden", "head")),
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Files of a workload of texts, as far as they are looked into before one of them is found to be wrong."""
    folder = tmp_path_factory.mktemp("texts", numbered=False)
    (folder / "texts.jsonl").write_text('{"text": "fine", "label": 1}\n{"text": "dull", "label": 0}\n')
    for model, files in {"bert": ("vocab.txt",), "mute": ()}.items():
        (folder / model).mkdir()
        for file in ("config.json", "model.safetensors", *files):
            (folder / model / file).write_text("")


@pytest.fixture(scope="module")
def outcomes(texts: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """What `tamis run` did with each bad input; two at a time, since each imports torch."""

    def attempt(name: str) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp("bad")
        return folder, tamis("run", write_toml(folder, **({"orchestrator": "prefect"} | BAD_INPUT[name][0])))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(BAD_INPUT, pool.map(attempt, BAD_INPUT)))


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    outcomes: dict[str, tuple[Path, Any]], name: str
) -> None:
    folder, done = outcomes[name]
    refused(done, *BAD_INPUT[name][1])
    assert list(folder.iterdir()) == [folder / "tamis.toml"]


def test_an_unwritable_workspace_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")  # root may write anywhere, but not under a file
    refused(tamis("run", write_toml(tmp_path, workspace="file/ws")), "file/ws: cannot be written", "give another")
    assert files_below(tmp_path).keys() == {"file", "tamis.toml"}


@pytest.mark.parametrize("orchestrator", ["none", "prefect"])
def test_a_workspace_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path, orchestrator: str) -> None:
    from storage.ledger import Ledger

    path = tmp_path / "ws" / "ledger.duckdb"
    path.parent.mkdir()
    Ledger(path).open_cycle(1, "0" * 64, {}, {}, "int")
    with duckdb.connect(str(path)) as ledger:
        ledger.execute("INSERT INTO schema_version SELECT max(version) + 1, now() FROM schema_version")
    before = files_below(tmp_path / "ws")
    refused(tamis("run", write_toml(tmp_path, orchestrator=orchestrator)), "knows up to", "upgrade Tamis")
    assert files_below(tmp_path / "ws") == before


def test_a_missing_toml_is_refused_with_the_remedy(tmp_path: Path) -> None:
    refused(tamis("status", cwd=tmp_path), "tamis.toml: no such file", "tamis init")


def test_what_init_writes_passes_check_and_is_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    done = tamis("init", folder)
    assert done.stdout.split("\n")[:2] == [str(folder / "tamis.toml"), str(folder / "workload.py")]
    checked = tamis("check", "--quick", cwd=folder)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert [line[:5] for line in checked.stdout.splitlines()] == ["ok   "] * 7
    (folder / "tamis.toml").write_text("mine")
    refused(tamis("init", folder), "tamis.toml, workload.py exists already", "give another folder")
    assert (folder / "tamis.toml").read_text() == "mine"


def test_check_says_what_is_wrong_and_leaves_with_2(tmp_path: Path) -> None:
    done = tamis("check", write_toml(tmp_path, options={"fault": "reduced"}))
    assert (done.returncode, done.stderr) == (2, "")
    assert re.search(r"^WRONG losses: .*reduction='none'", done.stdout, re.MULTILINE)


def test_before_the_first_cycle_status_names_the_command_and_the_ledger_says_that_it_is_not_there(
    tmp_path: Path,
) -> None:
    file = write_toml(tmp_path)
    done = tamis("status", file)
    assert done.returncode == 0
    assert "no cycle yet" in done.stdout
    assert f"next: tamis run {file}" in done.stdout
    refused(tamis("approve", "0" * 12, "--by", "me", "--file", file), "ledger")
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("room", ["storage", "influence"])
def test_a_package_that_hides_a_room_of_ours_gets_one_line_with_the_remedy(tmp_path: Path, room: str) -> None:
    (tmp_path / room).mkdir()
    (tmp_path / room / "__init__.py").write_text("")
    file = write_toml(tmp_path)
    refused(tamis("status", file, PYTHONPATH=str(tmp_path)), f"package '{room}'", "hidden by", "PYTHONPATH", "rename")


def test_the_current_folder_may_hold_packages_named_like_our_rooms(tmp_path: Path) -> None:
    for room in ("storage", "influence", "flows"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("")
    done = tamis("check", "--quick", write_toml(tmp_path, "tiny"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
