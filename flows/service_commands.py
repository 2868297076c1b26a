"""Commands of a service and of its reviewers: cycles on a schedule or at once, approval, a training anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.options import BY, HERE, JSON_OPTION, TOML, TOML_OPTION

app = typer.Typer()


@app.command()
def serve(
    files: Annotated[list[Path] | None, typer.Argument(help="The settings, one file of each data set.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Cycles at once.")] = 1,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the Prefect server it starts; 0 takes a free one.")
    ] = 4200,
    pool: Annotated[
        str | None, typer.Option(help="A Prefect work pool: its workers run the cycles, this process watches.")
    ] = None,
    webhooks: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Receive MLflow's webhooks; secret: TAMIS_WEBHOOK_SECRET.")
    ] = None,
) -> None:
    """Run cycles on schedule and after reviews until Ctrl-C; with PREFECT_API_URL, on that server."""
    from flows.serving import Extent, serve_files

    serve_files(files or [HERE], Extent(limit, pool, webhooks), port)


@app.command()
def trigger(file: TOML = HERE) -> None:
    """Have the service begin a cycle now, or continue the open one."""
    from flows.triggering import trigger_file

    print(trigger_file(file))


@app.command()
def retrain(
    cycle: Annotated[int, typer.Argument(help="On the data set as of this cycle.")],
    by: BY,
    file: TOML_OPTION = HERE,
    as_json: JSON_OPTION = False,
) -> None:
    """Train by the settings as they are now, on what a cycle left, and promote what is not worse than the champion."""
    from flows.anew import retrain_file
    from flows.tables import print_retrained

    print_retrained(retrain_file(file, cycle, by), as_json=as_json)


@app.command()
def approve(
    proposal: Annotated[str, typer.Argument(help="The proposal's hash, or its first 12 digits or more.")],
    by: BY,
    strike: Annotated[
        list[str] | None, typer.Option(help="The id of a point to leave out of what is approved; may be repeated.")
    ] = None,
    strike_file: Annotated[
        Path | None, typer.Option(help="More of them: one a line, or a Parquet or CSV with a column point_id.")
    ] = None,
    file: TOML_OPTION = HERE,
    reason: str = "",
) -> None:
    """Approve the open proposal, whole or in part; `tamis run` then removes, retrains and judges."""
    from storage.id_files import read_ids

    struck = (*(strike or ()), *(read_ids(strike_file) if strike_file else ()))
    _decide(file, proposal, "approve", by, reason, struck)


@app.command()
def reject(
    proposal: Annotated[str, typer.Argument(help="The proposal's hash, or its first 12 digits or more.")],
    by: BY,
    file: TOML_OPTION = HERE,
    reason: str = "",
) -> None:
    """Reject the open proposal; `tamis run` then closes the cycle without removing anything."""
    _decide(file, proposal, "reject", by, reason)


def _decide(
    file: Path,
    proposal: str,
    decision: Literal["approve", "reject"],
    by: str,
    reason: str,
    strike: tuple[str, ...] = (),
) -> None:
    from flows.decision import Act, decide, named

    print(decide(file, Act(proposal, decision, named(by), f"tamis {decision}", reason, strike)))
