"""The form of a reviewer in the Prefect UI: `tamis serve` registers the deployment `approve-NAME`, by data set.

It decides as `tamis approve` and `tamis reject` do, by the same function. What is refused is a failed run whose message
is the line that says why. Prefect knows no users: a name is what somebody typed in, and the ledger says so.

Import this module only after `prefect_environment`: Prefect reads its settings when it is first imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field

from flows.decision import Act, decide, named
from flows.errors import BadInput
from storage.errors import StorageError

UNKNOWN = "prefect:unauthenticated"


@flow(name="tamis-review")
def approve(
    file: str,
    proposal: Annotated[str, Field(pattern="^[0-9a-fA-F]{12,64}$")],
    decision: Literal["approve", "reject"],
    by: str = "",
    reason: str = "",
    strike: list[str] = [],  # noqa: B006 - what Prefect shows in its form; nothing changes it
) -> State[str]:
    """Approve or reject the open proposal of a data set.

    Args:
        file: The tamis.toml of the data set.
        proposal: The proposal's hash, or its first 12 digits or more: they stand in the report.
        decision: Approve or reject.
        by: Your name; needed where two persons must approve.
        reason: Why, for the ledger.
        strike: Ids of points to leave out of what is approved.
    """
    how = f"Prefect form, flow run {flow_run.get_name()}, unauthenticated"
    try:
        act = Act(proposal, decision, named(by) if by.strip() else UNKNOWN, how, reason, tuple(strike))
        line = decide(Path(file), act)
    except (BadInput, StorageError) as error:
        return Failed(message=" ".join(str(error).split()))
    return Completed(message=line, data=line)
