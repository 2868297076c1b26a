"""The `tamis` command. Nothing heavy is imported before a command needs it.

Exit codes: 0 for a cycle that ended or waits for review; 1 failed; 2 bad input; 130 Ctrl-C.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from flows.errors import BadInput, StageFailed
from flows.ledger_commands import app as ledger
from flows.options import HERE, JSON_OPTION, TOML, TOML_OPTION
from flows.printing import visible
from flows.redaction import without_password
from flows.service_commands import app as service

app = typer.Typer(
    help="Find the training points that hurt, remove them, prove that it helped, and keep a ledger of it all.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(service)
app.add_typer(ledger, name="ledger")

INTERRUPTED, TERMINATED = 130, 143


def main() -> None:
    """Run the command line and leave with its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that what was started is ended, too
    with _exit_codes():
        _check_rooms()
        app(standalone_mode=True)


@contextmanager
def _exit_codes() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues", INTERRUPTED)
    except SystemExit as leaving:
        if leaving.code != INTERRUPTED:
            raise
        _fail("interrupted; the same command continues", INTERRUPTED)  # typer has made Ctrl-C an exit
    except StageFailed as error:
        _fail(error, 1)
    except BadInput as error:
        _fail(error, 2)
    except Exception as error:
        from influence.errors import InfluenceError  # imports torch: only once something went wrong
        from storage.errors import StorageError

        if not isinstance(error, InfluenceError | StorageError):
            raise
        _fail(error, 2)


def _fail(error: Exception | str, code: int) -> None:
    print(f"tamis: {visible(without_password(' '.join(str(error).split())))}", file=sys.stderr)
    sys.exit(code)


def _check_rooms() -> None:
    """Tamis has plain package names; a package of the same name that hides one of them gets one clear line."""
    home = Path(__file__).resolve().parents[1]
    for room in ("influence", "storage"):
        spec = importlib.util.find_spec(room)
        where = Path(spec.origin).resolve().parents[1] if spec is not None and spec.origin else None
        if where != home:
            raise BadInput(
                f"the package {room!r} of Tamis is hidden by {where}: take that folder off PYTHONPATH, rename the "
                "package there, or run tamis in an environment of its own"
            )


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tamis {version('tamis')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    file: TOML = HERE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop at the proposal.")] = False,
    as_json: JSON_OPTION = False,
) -> None:
    """Continue the unfinished cycle, else open the next."""
    from flows.running import run_file
    from flows.tables import print_summary

    print_summary(run_file(file, dry_run=dry_run), as_json=as_json)


@app.command()
def node(
    file: TOML = HERE,
    rank: Annotated[int | None, typer.Option(help="Which node this is, from 1; default: NODE_RANK.")] = None,
) -> None:
    """Join the cycle that `tamis run` works on at the first of several nodes, until it ends."""
    from flows.config import load
    from flows.nodes import join

    join(load(file), rank, lambda line: print(line, file=sys.stderr, flush=True))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write tamis.toml and workload.py.")],
    workload: Annotated[str, typer.Option("--workload", help="Of a built-in workload instead: causal_lm.")] = "",
) -> None:
    """Write a commented tamis.toml and a workload.py that run as they are."""
    from flows.scaffold import write_scaffold

    for path in write_scaffold(folder, workload):
        print(path)


@app.command()
def check(
    file: TOML = HERE,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the trial.")] = False,
    as_json: JSON_OPTION = False,
) -> None:
    """Say in one line each what is wrong, or else, after a short trial, what time, memory and disk a cycle takes."""
    from flows.check import check as check_workload
    from flows.config import load
    from flows.findings import print_findings

    config = load(file)
    findings = check_workload(config)
    if not quick and all(finding.ok for finding in findings):
        from flows.outlook import outlook

        findings += outlook(config)
    print_findings(findings, as_json=as_json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(2)


@app.command()
def doctor(file: TOML = HERE, as_json: JSON_OPTION = False) -> None:
    """Say in one line each what of the installation and the workspace is not as it should be; nothing is changed."""
    from flows.config import load
    from flows.doctor import examine
    from flows.findings import print_findings

    findings = examine(load(file))
    print_findings(findings, as_json=as_json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(2)


@app.command()
def gc(
    file: TOML = HERE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    as_json: JSON_OPTION = False,
) -> None:
    """Remove what [retention] no longer keeps and what killed processes have left; nothing that explains a removal."""
    from flows.retention import collect
    from flows.tables import print_collected

    print_collected(collect(file, dry_run=dry_run), as_json=as_json)


@app.command()
def validate(
    file: TOML = HERE,
    study: Annotated[
        list[str] | None,
        typer.Option(
            help="lds, loo, exact-loo, mislabeled, pruning or memorization; may be repeated. Default: all but "
            "exact-loo, and mislabeled only where the workload knows the truth."
        ),
    ] = None,
    subsets: Annotated[int, typer.Option(help="Random subsets, in lds and memorization.")] = 100,
    retrains: Annotated[int, typer.Option(help="Models per subset in lds, and per point in loo.")] = 5,
    seeds: Annotated[int, typer.Option(help="Models per removal in pruning.")] = 3,
    fragility: Annotated[
        bool,
        typer.Option(
            "--fragility",
            help="How far scores move with damping, checkpoint, seed, weight decay, depth and width; alone unless a "
            "study is named, beside lds by its truth, too.",
        ),
    ] = False,
    as_json: JSON_OPTION = False,
) -> None:
    """Judge the estimator against retrained models; what a killed run has trained is kept."""
    from flows.tables import print_validation
    from flows.validation.bench import Extent
    from flows.validation.running import validate_file

    extent = Extent(subsets, retrains, seeds)
    print_validation(validate_file(file, study or (), extent, fragile=fragility), as_json=as_json)


@app.command()
def estimators(as_json: JSON_OPTION = False) -> None:
    """List the estimators of influence: how exact each is, what it costs and when to use it."""
    from flows.estimators import ESTIMATORS
    from flows.tables import print_estimators

    print_estimators(ESTIMATORS, as_json=as_json)


@app.command()
def score(
    checkpoint: Annotated[Path, typer.Option(help="A safetensors file of the workload's model, trained anywhere.")],
    file: TOML_OPTION = HERE,
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")] = Path("scores.parquet"),
    as_json: JSON_OPTION = False,
) -> None:
    """Score the train points with a model that was trained elsewhere: no cycle, no ledger."""
    from flows.score_file import score_file
    from flows.tables import print_scored

    print_scored(score_file(file, checkpoint, out), as_json=as_json)


@app.command()
def status(file: TOML = HERE, as_json: JSON_OPTION = False) -> None:
    """Say where the newest cycle stands."""
    from flows.inspection import status_of
    from flows.tables import print_status

    print_status(status_of(file), as_json=as_json)


@app.command()
def export(
    file: TOML = HERE,
    as_of: Annotated[
        int | None, typer.Option("--as-of", help="The data set that this cycle left; default: the last that has ended.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder to make; default: export-<cycle> here.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Write the lists as text, too, one id a line.")] = False,
    as_json: JSON_OPTION = False,
) -> None:
    """Write what is kept, removed and relabelled as of a cycle, for any trainer."""
    from flows.export import export_file
    from flows.tables import print_export

    print_export(export_file(file, as_of, out, text=text), as_json=as_json)


@app.command()
def ui(
    file: TOML = HERE,
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 0,
) -> None:
    """Open the MLflow UI on the workspace, on this machine only; Ctrl-C ends it."""
    from flows.inspection import serve_ui

    sys.exit(serve_ui(file, port))
