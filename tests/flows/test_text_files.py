"""Files of texts: four formats hold the same rows, and each thing that is wrong with one is said in one line."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.errors import BadInput
from flows.workloads.text.columns import classes_of, ids_by_content, ids_of, labels_of, texts_of
from flows.workloads.text.files import Rows, read_rows
from tests.flows.texts import sentences, write_rows

ROWS = sentences(6)


def rows_of(**columns: list[Any]) -> Rows:
    return Rows(Path("given.jsonl"), "line", 1, columns)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tsv"])
def test_four_formats_hold_the_same_rows(tmp_path: Path, kind: str) -> None:
    read = read_rows(write_rows(tmp_path / f"texts.{kind}", ROWS), ["text", "label", "id"])
    assert [dict(zip(read.columns, values)) for values in zip(*read.columns.values())] == [
        {name: row[name] for name in ("text", "label", "id")} for row in ROWS
    ]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tsv"])
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, kind: str) -> None:
    file = write_rows(tmp_path / f"texts.{kind}", ROWS)
    with pytest.raises(BadInput, match=r"no column 'body': there are 'id', 'text', 'label'$"):
        read_rows(file, ["body"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cut.jsonl", b'{"text": "a"}\n{"text": "b', r"line 2: not a JSON object in one line .*: was the file cut"),
        ("latin.jsonl", '{"text": "é"}'.encode("latin-1"), r"line 1: not UTF-8 at byte 10"),
        ("list.jsonl", b'{"text": "a"}\n["b"]\n', r"line 2: holds a list"),
        ("some.jsonl", b'{"text": "a"}\n{"body": "b"}\n', r"line 2: no column 'text': there are 'body'"),
        ("empty.jsonl", b"", r"holds no row"),
        ("cut.parquet", b"PAR1 and no more", r"not a whole Parquet file"),
        ("uneven.csv", b"text,label\na,1\nb\n", r"cannot be read: .*Expected 2 columns, got 1"),
        ("latin.csv", "text,label\né,1\n".encode("latin-1"), r"column 'text' is not UTF-8"),
        ("texts.docx", b"", r"\.docx is no known kind of file: give \.parquet, \.jsonl"),
    ],
)
def test_a_damaged_file_is_refused_by_its_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=said) as refused:
        read_rows(tmp_path / name, ["text"])
    assert "\n" not in str(refused.value)


def test_ids_of_a_file_without_types_are_read_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text,id,label\na,001,1\nb,1,0\n")
    read = read_rows(tmp_path / "texts.csv", ["id", "label"], ["id"])
    assert read.columns == {"id": ["001", "1"], "label": [1, 0]}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.csv: no such file"):
        read_rows(tmp_path / "none.csv", ["text"])


def classes(values: list[Any]) -> tuple[str, ...]:
    return classes_of(rows_of(label=values), "label", [])


def labels(values: list[Any]) -> list[int]:
    return labels_of(rows_of(label=values), "label", ["0", "1"])


def texts(values: list[Any]) -> list[str]:
    return texts_of(rows_of(text=values), "text")


def ids(values: list[Any]) -> list[Any]:
    return ids_of(rows_of(id=values), "id")


@pytest.mark.parametrize(
    ("check", "values", "said"),
    [
        (texts, ["a", " ", ""], r"column 'text' is empty in 2 of 3 rows \(the first is line 2: ' '\)"),
        (texts, ["a", None], r"column 'text' is no text in 1 of 2 rows \(the first is line 2: None\)"),
        (texts, [7, "a"], r"column 'text' is no text in 1 of 2 rows \(the first is line 1: 7\)"),
        (ids, [1, 2, 1], r"id 1 is in line 1 and in line 3"),
        (ids, [1.0, math.nan], r"column 'id' has no value in 1 of 2 rows \(the first is line 2: nan\)"),
        (
            ids,
            [1, 2**63],
            r"column 'id' has more than 64 bits in 1 of 2 rows \(the first is line 2: 9223372036854775808\)",
        ),
        (
            ids,
            ["a", "b\ud800"],
            r"column 'id' holds a lone surrogate in 1 of 2 rows \(the first is line 2: 'b\\ud800'\)",
        ),
        (ids, ["a", ""], r"column 'id' has no value in 1 of 2 rows \(the first is line 2: ''\)"),
        (texts, ["a", "b\ud800"], r"column 'text' holds a lone surrogate in 1 of 2 rows \(the first is line 2: "),
        (ids, [1.0, 2.0], r"column 'id' holds float: give integers or texts"),
        (ids, [1, 2, "3"], r"column 'id' holds 2 int, 1 str \(line 3: '3'\): give values of one type"),
        (labels, [0, None, 1], r"column 'label' has no value in 1 of 3 rows \(the first is line 2: None\)"),
        (labels, [0, 2, 1, 3], r"none of the classes in 2 of 4 rows \(the first is line 2: 2\): allowed are '0', '1'"),
        (labels, ["0", 1], r"column 'label' holds 1 str, 1 int"),
        (classes, [-1, 1], r"holds -1, 1: integers count the classes from 0 .* by labels = \[-1, 1\]"),
        (classes, [0, 2], r"holds 0, 2: integers count the classes from 0 without a gap"),
        (classes, ["a", "a"], r"holds 'a' alone: give two classes"),
    ],
)
def test_a_column_that_cannot_be_used_is_refused_by_its_rows(
    check: Callable[[list[Any]], Any], values: list[Any], said: str
) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        check(values)
    assert "\n" not in str(refused.value)


def test_classes_are_sorted_or_in_the_order_that_is_given() -> None:
    rows = rows_of(label=["good", "bad", "good"])
    assert labels_of(rows, "label", classes_of(rows, "label", [])) == [1, 0, 1]
    assert labels_of(rows, "label", classes_of(rows, "label", ["good", "bad", "unseen"])) == [0, 1, 0]
    assert labels_of(rows_of(label=[-1, 1]), "label", classes_of(rows_of(label=[-1, 1]), "label", [-1, 1])) == [0, 1]
    assert labels_of(rows_of(label=[0, 1]), "label", ["good", "bad"]) == [0, 1], "integers count the names"
    with pytest.raises(BadInput, match=r"\(the first is line 2: 2\): allowed are 0 to 1, which count 'good', 'bad'"):
        labels_of(rows_of(label=[1, 2]), "label", ["good", "bad"])


def test_ids_by_content_tell_copies_apart_and_stay_when_rows_are_appended() -> None:
    before = ids_by_content(["a", "b", "a"])
    assert len(set(before)) == 3
    assert before[2] == f"{before[0]}-2"
    assert ids_by_content(["a", "b", "a", "c", "a"])[:3] == before
