"""What the source never does: put a value into SQL, unpickle, or run what a file says; read from the syntax trees."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import lake_extensions

ROOT = Path(__file__).parents[2]
ROOMS = ("flows", "influence", "storage")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
SQL = re.compile(
    r"\b(SELECT|INSERT|FROM|COPY|CREATE|WHERE|UNION|JOIN|ORDER BY|LIMIT|CAST|VALUES|SET|UPDATE|DELETE|ATTACH|LOAD)\b"
)
QUOTING = r"(quote|_text|_marks|marks|_read|_no_glob|_place|_digests|_first|(errors\.)?quoted)\(.*\)"
SAFE = re.compile(rf"[A-Z_]+|{QUOTING}|scores\.select_list\(.*\)")
"""Constants of a module, and the functions that quote, or write statements of constants alone."""
KNOWN = {
    "chain.py": {
        "name",
        "source",
        "after",
        "drawn",
        "text",
        "column",
        "table",
        "', '.join(columns[name])",
        "KEYS.get(name, repr(''))",
    },
    "lake.py": {
        "name",
        "table",
        "source",
        "create",
        "cycle",
        "count",
        "options",
        "lake.lock",
        "_drawn(con)",
    },
    "lake_extensions.py": {"options"},
    "ledger_exchange.py": {"table", "source", "cycle", "WRITE[form]"},
    "ledger_rows.py": {"columns", "', '.join(ROWS)", "', '.join([point_id, *ROWS[1:]])"}
    | {"'BIGINT' if last and last.id_kind == 'int' else 'VARCHAR'"},
    "ledger_views.py": {"point_id", "label", "'BIGINT' if last and last.id_kind == 'int' else 'VARCHAR'"},
    "policy_sql.py": {
        "branches",
        "held",
        "kind",
        "name",
        "test",
        "i",
        "one.op",
        "rule.op",
        "k",
        "value",
        "' AND '.join(parts)",
    }
    | {"' OR '.join(chosen)", "', '.join(parts)"},
    "reviews.py": {"columns", "struck"},
    "score_sql.py": {"', '.join((_text(_no_glob(path)) for path in paths))"},
    "selection.py": {"more", "query", "back", "order", "column"},
    "tracking.py": {"key", "value", "model", "run"},
}
"""Looked at one by one: names of our own tables, columns and databases, numbers, statements made of such, operators of
`Rule`; in MLflow's filters, numbers, run ids, and names that `check_name` has let through."""


def trees() -> Iterator[tuple[Path, ast.Module]]:
    return ((path, ast.parse(path.read_text(encoding="utf-8"))) for path in FILES)


def interpolations(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """What f-strings that read like SQL put into it, but in messages."""
    messages = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Raise) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and id(node) not in messages:
            constant = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
            if SQL.search(constant):
                for part in node.values:
                    if isinstance(part, ast.FormattedValue):
                        yield node.lineno, ast.unparse(part.value)


def asks(tree: ast.Module) -> bool:
    """Whether a module writes statements: it runs one, or its name says so."""
    called = (
        node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) if isinstance(node.func, ast.Attribute)
    )
    return bool({"execute", "sql", "query", "executemany", "search_runs"} & set(called))


def test_no_value_is_put_into_a_statement_but_names_of_our_own_and_what_is_quoted() -> None:
    found, wrong = 0, []
    for path, tree in trees():
        if asks(tree) or path.name.endswith("_sql.py"):
            for line, said in interpolations(tree):
                found += 1
                if not SAFE.fullmatch(said) and said not in KNOWN.get(path.name, set()):
                    wrong.append(f"{path.relative_to(ROOT)}:{line} {said}")
    assert found > 30, "the search finds the statements that are there"
    assert not wrong


def test_the_search_sees_a_value_that_is_put_into_a_statement() -> None:
    planted = ast.parse("def f(con, point): con.execute(f\"SELECT * FROM actions WHERE point_id = '{point}'\")")
    assert asks(planted)
    assert [said for _, said in interpolations(planted)] == ["point"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_and_nothing_that_was_read_is_run(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} | {
                (getattr(node, "module", "") or "").split(".")[0]
            }
            assert not names & {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "yaml"}, (
                names
            )
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {one.arg: ast.unparse(one.value) for one in node.keywords}
            assert called not in ("eval", "exec", "compile", "os.system", "pd.read_pickle"), called
            assert given.get("shell") != "True", called
            assert given.get("allow_pickle") != "True", called
            if called == "torch.load":
                assert given["weights_only"] == "True"


def test_only_the_loader_of_workloads_imports_by_name_and_that_of_duckdbs_extensions_by_fixed_ones() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        if re.search(r"import_module|exec_module|__import__", path.read_text())
    }
    assert found == {"flows/modules.py", "flows/workloads/text/library.py", "storage/lake_extensions.py"}
    named = {name for path in FILES for name in re.findall(r"(?<!def )\blibrary\((.*?)\)", path.read_text())}
    assert all(re.fullmatch(r'("[a-z_.]+")?', name) for name in named), "libraries of the extra hf by fixed names"
    assert set(lake_extensions.EXTENSIONS) == {"ducklake", "postgres_scanner", "httpfs"}


def test_only_the_training_engine_reads_deepspeeds_files_which_are_pickles() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in FILES if ".load_checkpoint(" in path.read_text()}
    assert found == {"flows/ranks/engine.py"}
