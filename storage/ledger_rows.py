"""Rows that several transactions of the ledger write: events and proposals."""

from collections.abc import Mapping

import duckdb

from storage.connection import utc_now
from storage.errors import CycleConflict, LedgerBroken
from storage.files import JSON, canonical_json
from storage.ledger_queries import last_cycle, review_of
from storage.proposals import Proposal
from storage.records import ProposalRecord, State, Terms

ACTOR = "tamis"  # of every step that nobody decides
ROWS = ["point_id", "action", "new_label", "reason", "score", "threshold"]
PROPOSE = f"""
INSERT INTO proposal_rows (cycle, hash, {", ".join(ROWS)})
SELECT ?, ?, {", ".join(ROWS)} FROM new_rows ORDER BY CAST(point_id AS VARCHAR)
"""  # in the order of the key, as its index takes rows best


def record(
    con: duckdb.DuckDBPyConnection, cycle: int, state: State, actor: str, detail: Mapping[str, JSON], key: str
) -> bool:
    """Record an event; False if this (cycle, state, key) was recorded before."""
    query = (
        f"INSERT INTO events (cycle, state, key, actor, event_at, detail_json) VALUES ({marks(6)}) "
        "ON CONFLICT DO NOTHING RETURNING seq"
    )
    return bool(con.execute(query, [cycle, state, key, actor, utc_now(), canonical_json(detail)]).fetchall())


def put_proposal(con: duckdb.DuckDBPyConnection, proposal: Proposal, terms: Terms, actor: str) -> bool:
    """Make a proposal the newest of its cycle, by its rows, or by another event `proposed` if they are there.

    Raises:
        CycleConflict: it was decided on and then superseded.
    """
    detail: dict[str, JSON] = {"proposal": proposal.hash, "size": proposal.size, **terms.detail}
    times = _times_proposed(con, proposal)
    if times:
        _check_undecided(con, proposal)
        return record(con, proposal.cycle, "proposed", actor, detail, f"{proposal.hash}/{times + 1}")
    key, policy = [proposal.cycle, proposal.hash], canonical_json(proposal.policy)
    columns = "cycle, hash, dataset_sha256, scores_sha256, policy_json, size, proposed_at"
    row = [*key, proposal.dataset_sha256, proposal.scores_sha256, policy, proposal.size, utc_now()]
    con.execute(f"INSERT INTO proposals ({columns}) VALUES ({marks(7)})", row)
    con.register("new_rows", proposal.rows.select(ROWS))
    con.execute(PROPOSE, key)
    return record(con, proposal.cycle, "proposed", actor, detail, proposal.hash)


def proposal_of(con: duckdb.DuckDBPyConnection, record: ProposalRecord) -> Proposal:
    """A proposal with the rows that the ledger has of it, sorted by point_id.

    Raises:
        LedgerBroken: they do not have the hash.
    """
    last = last_cycle(con)
    point_id = f"CAST(point_id AS {'BIGINT' if last and last.id_kind == 'int' else 'VARCHAR'}) AS point_id"
    query = f"SELECT {', '.join([point_id, *ROWS[1:]])} FROM proposal_rows WHERE cycle = ? AND hash = ? ORDER BY 1"
    rows = con.execute(query, [record.cycle, record.hash]).to_arrow_table()
    proposal = Proposal(record.cycle, rows, record.dataset_sha256, record.scores_sha256, record.policy)
    if proposal.hash != record.hash:
        raise LedgerBroken(
            f"the rows of proposal {record.hash[:12]} hash to {proposal.hash[:12]}: another hand changed them; see "
            "`tamis ledger verify`"
        )
    return proposal


def marks(count: int) -> str:
    """So many places for values in a statement."""
    return ", ".join("?" * count)


def _times_proposed(con: duckdb.DuckDBPyConnection, proposal: Proposal) -> int:
    query = "SELECT count(*) FROM events WHERE cycle = ? AND state = 'proposed' AND left(key, 64) = ?"
    [(times,)] = con.execute(query, [proposal.cycle, proposal.hash]).fetchall()
    return int(times)


def _check_undecided(con: duckdb.DuckDBPyConnection, proposal: Proposal) -> None:
    review = review_of(con, proposal.cycle, proposal.hash)
    if review is not None:
        raise CycleConflict(
            f"proposal {proposal.hash[:12]} of cycle {proposal.cycle} was decided already: {review.decision} by "
            f"{review.actor}, and superseded since; decide on the newest one and propose again in the next cycle"
        )
