"""`tamis ledger`: what was decided about which point, whether the record still stands, and how to undo it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.options import BY, HERE, JSON_OPTION, TOML_OPTION

LIMIT = Annotated[int, typer.Option(min=1, help="So many of the newest events.")]

app = typer.Typer(help="What was decided about which point, and how to undo it.", no_args_is_help=True)


@app.command()
def log(file: TOML_OPTION = HERE, limit: LIMIT = 50, as_json: JSON_OPTION = False) -> None:
    """List what happened, newest first."""
    from flows.inspection import open_ledger
    from flows.ledger_tables import print_log

    print_log(open_ledger(file).log(limit), as_json=as_json)


@app.command()
def why(point: str, file: TOML_OPTION = HERE, as_json: JSON_OPTION = False) -> None:
    """Say why a point is out, relabelled, back or was left alone, and which queries it moves most."""
    from flows.evidence import account_of
    from flows.ledger_tables import print_account

    print_account(account_of(file, point), as_json=as_json)


@app.command()
def restore(
    by: BY,
    points: Annotated[list[str] | None, typer.Argument(help="Ids of points that are removed or relabelled.")] = None,
    from_file: Annotated[
        Path | None, typer.Option("--from-file", help="One id per line, or a Parquet or CSV with a column point_id.")
    ] = None,
    label: Annotated[int | None, typer.Option("--class", help="Those of this given label.")] = None,
    cycle: Annotated[int | None, typer.Option("--cycle", help="Those that this cycle removed or relabelled.")] = None,
    query: Annotated[str | None, typer.Option("--query", help="Those that harmed this query most.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many, and restore none.")] = False,
    reason: str = "restored by hand",
    file: TOML_OPTION = HERE,
) -> None:
    """Bring removed and relabelled points back as rows of the ledger: those that all of what is given names."""
    from flows.restoration import Choice, restore

    choice = Choice(tuple(points or ()), from_file, label, cycle, query)
    print(restore(file, choice, by, reason, dry_run=dry_run))


@app.command()
def diff(before: int, after: int, file: TOML_OPTION = HERE, as_json: JSON_OPTION = False) -> None:
    """Count what was removed, relabelled and restored from the data set as of one cycle to that of another."""
    from flows.comparison import difference
    from flows.ledger_tables import print_difference

    print_difference(difference(file, before, after), as_json=as_json)


@app.command()
def regret(file: TOML_OPTION = HERE, as_json: JSON_OPTION = False) -> None:
    """List removed points that the newest scores call helpful; nothing is restored."""
    from flows.comparison import regrets
    from flows.ledger_tables import print_regrets

    print_regrets(regrets(file), as_json=as_json)


@app.command()
def verify(
    head: Annotated[str | None, typer.Option(help="A head that was kept elsewhere, e.g. on the MLflow run.")] = None,
    file: TOML_OPTION = HERE,
    as_json: JSON_OPTION = False,
) -> None:
    """Check every row against the hash chain; exit code 1 if one is not as it was written."""
    from flows.inspection import open_ledger
    from flows.ledger_tables import print_verification

    found = open_ledger(file).verify(head)
    print_verification(found, as_json=as_json)
    if not found.holds:
        raise typer.Exit(1)


@app.command()
def snapshot(copy: Path, file: TOML_OPTION = HERE) -> None:
    """Write a consistent copy: to query at leisure, or to import once the workspace is lost."""
    from flows.inspection import open_ledger
    from storage.ledger import Ledger
    from storage.ledger_exchange import snapshot

    snapshot(open_ledger(file), copy)
    print(f"{copy}: head {Ledger(copy).head()}")


@app.command()
def export(
    folder: Path,
    csv: Annotated[bool, typer.Option("--csv", help="CSV instead of Parquet.")] = False,
    file: TOML_OPTION = HERE,
) -> None:
    """Write all tables, with the head of the hash chain, to a new folder."""
    from flows.inspection import open_ledger
    from storage.ledger_exchange import export

    found = export(open_ledger(file), folder, "csv" if csv else "parquet")
    print(f"{folder}: {found.rows:,} rows, head {found.head}")


@app.command("import")
def read_back(
    copy: Path,
    head: Annotated[str | None, typer.Option(help="A head that was kept elsewhere, which the copy must reach.")] = None,
    file: TOML_OPTION = HERE,
) -> None:
    """Make the ledger of a workspace without one from what `export` or `snapshot` wrote, if its chain holds."""
    from flows.inspection import open_ledger
    from storage.ledger_exchange import read_back

    found = read_back(copy, open_ledger(file), head)
    print(f"{found.rows:,} rows verified, head {found.head}")
