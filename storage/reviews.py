"""What stands about the open proposal, and what each act of a reviewer writes.

Above a share of the train set two persons must approve, named and different (`storage.records.Terms`): what the first
one says is the event `endorsed`, and the row of `reviews` is written with the second. One rejection decides. Whoever
strikes points out makes a new proposal in the same act, and approves that one; the old one is `superseded`.
"""

import re
import unicodedata
from collections.abc import Collection
from dataclasses import astuple, dataclass, replace
from datetime import datetime, timedelta

import duckdb
import pyarrow as pa

from storage.connection import utc_now
from storage.errors import StaleApproval
from storage.files import JSON
from storage.ledger_queries import is_finished, last_cycle, newest_proposal, records, review_of
from storage.ledger_rows import marks, proposal_of, put_proposal, record
from storage.points import PointId, id_text
from storage.proposals import Proposal
from storage.records import Decision, EventRecord, ProposalRecord, ReviewRecord, State, Terms

PREFIX = re.compile(r"[0-9a-f]{12,64}")
REVIEWED: dict[Decision, State] = {"approve": "approved", "reject": "rejected"}
EXPIRY = "rule:expiry"
UNNAMED = ("rule:", "mlflow:", "prefect:")
"""What the actors begin with that are no named persons."""
SHOWN = 5


@dataclass(frozen=True)
class OpenProposal:
    """The proposal that a decision may still be of, or was: the newest of the unfinished cycle.

    Attributes:
        record: As it was recorded.
        terms: What its review has to fulfil.
        events: What happened to it, in order.
        review: The decision.
        run: The MLflow run of its cycle.
    """

    record: ProposalRecord
    terms: Terms
    events: tuple[EventRecord, ...]
    review: ReviewRecord | None
    run: str | None

    @property
    def short(self) -> str:
        """The first 12 digits of its hash."""
        return self.record.hash[:12]

    @property
    def persons(self) -> int:
        """How many must approve it."""
        return self.terms.persons(self.record.size)

    @property
    def approvers(self) -> tuple[str, ...]:
        """Those who have approved, each once, where it takes two."""
        return tuple(event.actor for event in self._of("endorsed"))

    def approved_by(self, actor: str) -> bool:
        """Whether this person is one of them, however the name is written."""
        return plain_name(actor) in map(plain_name, self.approvers)

    @property
    def times(self) -> int:
        """So often it was proposed: again when another one had superseded it."""
        return len(self._of("proposed"))

    @property
    def expired(self) -> bool:
        """Whether its expiry was recorded since it was last proposed."""
        return self._last("expired") > self._last("proposed")

    @property
    def expires_at(self) -> datetime | None:
        """When it does, in UTC."""
        hours = self.terms.expires_hours
        return None if hours is None else self._of("proposed")[-1].event_at + timedelta(hours=hours)

    def lapsed(self, now: datetime) -> bool:
        """Whether nobody can decide on it any more, although nobody has."""
        return self.review is None and (self.expired or (self.expires_at is not None and now >= self.expires_at))

    def silent(self, now: datetime) -> timedelta:
        """How long nobody was asked or reminded."""
        return now - max(event.event_at for event in (*self._of("proposed"), *self._of("reminded")))

    @property
    def reminders(self) -> int:
        """Sent so far."""
        return len(self._of("reminded"))

    @property
    def asked(self) -> bool:
        """Whether the cycle has asked for a decision on it."""
        return bool(self._of("awaiting_review"))

    @property
    def unshown(self) -> bool:
        """Whether somebody has approved since the cycle last asked, so that its page does not say so."""
        return self._last("endorsed") > self._last("awaiting_review")

    @property
    def said(self) -> str:
        """What is missing, and until when; empty where any one person may decide at any time."""
        said = []
        if self.persons > 1 and self.review is None:
            one = f"approved by {' and '.join(self.approvers)}; one more approval is needed, by another named person"
            two = f"two named persons must approve (more than {self.terms.second_person_above:g} of the train set)"
            said.append(one if self.approvers else two)
        if self.expires_at is not None and self.review is None:
            said.append(f"it {'expired' if self.expired else 'expires'} at {self.expires_at:%Y-%m-%d %H:%M} UTC")
        return "; ".join(said)

    def _of(self, state: State) -> tuple[EventRecord, ...]:
        return tuple(event for event in self.events if event.state == state)

    def _last(self, state: State) -> int:
        return max((event.seq for event in self._of(state)), default=0)


def is_named(actor: str) -> bool:
    """Whether an actor is a person by name, not a rule and not whoever could reach a page."""
    name = plain_name(actor)
    return bool(name) and not name.startswith(UNNAMED)


def open_proposal(con: duckdb.DuckDBPyConnection) -> OpenProposal | None:
    """The newest proposal of the unfinished cycle, if there is one."""
    last = last_cycle(con)
    newest = newest_proposal(con, last.cycle) if last and not is_finished(con, last.cycle) else None
    if last is None or newest is None:
        return None
    query = "FROM events WHERE cycle = ? AND left(key, 64) = ? ORDER BY seq"
    events = records(con, EventRecord, query, [newest.cycle, newest.hash])
    proposed = next(event for event in events[::-1] if event.state == "proposed")
    terms = Terms(*(proposed.detail.get(name) for name in Terms.__dataclass_fields__))
    return OpenProposal(newest, terms, events, review_of(con, newest.cycle, newest.hash), last.mlflow_run_id)


def decide(
    con: duckdb.DuckDBPyConnection, given: str, decision: Decision, actor: str, how: str, reason: str
) -> ReviewRecord | None:
    """Decide on the open proposal, as `storage.ledger.Ledger.add_review` says."""
    opened = _named(con, given)
    if opened.review is not None and opened.review.decision == decision:
        return opened.review
    _check_open(opened)
    proposal, by = opened.record, actor
    detail: dict[str, JSON] = {"proposal": proposal.hash, "how": how, "reason": reason}
    if decision == "approve" and opened.persons > 1:
        if not is_named(actor):
            raise StaleApproval(
                f"proposal {opened.short} takes two named persons, and {actor} names none: `tamis approve "
                f"{opened.short} --by NAME`, or the form with the field `by`"
            )
        others = [name for name in opened.approvers if plain_name(name) != plain_name(actor)]
        record(con, proposal.cycle, "endorsed", actor, detail, f"{proposal.hash}/{plain_name(actor)}")
        if not others:
            return None
        by = f"{others[0]} and {actor}"
    review = ReviewRecord(proposal.cycle, proposal.hash, decision, by, how, reason, utc_now())
    columns = "cycle, hash, decision, actor, how, reason, event_at"
    con.execute(f"INSERT INTO reviews ({columns}) VALUES ({marks(7)})", list(astuple(review)))
    record(con, proposal.cycle, REVIEWED[decision], by, detail, proposal.hash)
    return review


def strike(
    con: duckdb.DuckDBPyConnection, given: str, struck: Collection[PointId], actor: str, how: str, reason: str
) -> ProposalRecord:
    """Strike points out of the open proposal and approve what is left, as `storage.ledger.Ledger.strike` says."""
    texts = {id_text(point) for point in struck}
    known = _struck_before(con, given, texts)
    if known is None:
        opened = _named(con, given)
        _check_open(opened)
        left = _without(proposal_of(con, opened.record), texts)
        detail: dict[str, JSON] = {"proposal": opened.record.hash, "by": left.hash, "struck": len(texts)}
        detail |= {"how": how, "reason": reason}
        record(con, left.cycle, "superseded", actor, detail, f"{opened.record.hash}/{left.hash}")
        put_proposal(con, left, opened.terms, actor)
        known = _named(con, left.hash).record
    decide(con, known.hash, "approve", actor, how, reason)
    return known


def expire(con: duckdb.DuckDBPyConnection, cycle: int) -> bool:
    """Record that nobody decided on the open proposal of a cycle in time; False where that is not so."""
    opened = open_proposal(con)
    if opened is None or opened.record.cycle != cycle or not opened.lapsed(utc_now()):
        return False
    if not opened.expired:
        detail: dict[str, JSON] = {"proposal": opened.record.hash, "after_hours": opened.terms.expires_hours}
        record(con, cycle, "expired", EXPIRY, detail, f"{opened.record.hash}/{opened.times}")
    return True


def struck_from(con: duckdb.DuckDBPyConnection, cycle: int, proposal: str) -> ProposalRecord | None:
    """The newest proposal of a cycle, if reviewers made it of another one by striking points out."""
    newest = newest_proposal(con, cycle)
    if newest is None or newest.hash == proposal:
        return None
    struck = "SELECT left(key, 64), substr(key, 66) FROM events WHERE cycle = ? AND state = 'superseded'"
    origins = {newest.hash}
    for before, after in con.execute(f"{struck} ORDER BY seq DESC", [cycle]).fetchall():
        origins |= {before} if after in origins else set()
    return newest if proposal in origins else None


def _named(con: duckdb.DuckDBPyConnection, given: str) -> OpenProposal:
    """The open proposal, if it is the one whose hash is given."""
    given = given.strip().lower()
    opened = open_proposal(con)
    if opened is not None and PREFIX.fullmatch(given) and opened.record.hash.startswith(given):
        return opened
    fate = _fate(con, given) if PREFIX.fullmatch(given) else ""
    if opened is None:
        raise StaleApproval(f"{given[:64]!r} cannot be decided on: {fate or 'no proposal is open'}; see `tamis status`")
    raise StaleApproval(
        f"{given[:64]!r} is not the open proposal of cycle {opened.record.cycle}{f', {fate}' * bool(fate)}; that is "
        f"{opened.short}: give at least these 12 hex digits"
    )


def _fate(con: duckdb.DuckDBPyConnection, given: str) -> str:
    """What became of a proposal that is not open; empty where there never was one."""
    query = "SELECT * EXCLUDE (seq) FROM proposals WHERE starts_with(hash, ?) ORDER BY seq DESC LIMIT 1"
    for known in records(con, ProposalRecord, query, [given]):
        if (review := review_of(con, known.cycle, known.hash)) is not None:
            return f"it was decided in cycle {known.cycle}: {review.decision} by {review.actor}"
        query = """
            FROM events WHERE cycle = ? AND left(key, 64) = ? AND state IN ('expired', 'superseded')
            ORDER BY seq DESC LIMIT 1"""
        for event in records(con, EventRecord, query, [known.cycle, known.hash]):
            if event.state == "expired":
                return f"it expired in cycle {known.cycle} after {event.detail['after_hours']:g} h without a decision"
            return f"{event.actor} struck points out of it in cycle {known.cycle} and made {event.detail['by'][:12]}"
        return f"it was superseded in cycle {known.cycle}, or that cycle has ended"
    return ""


def _check_open(opened: OpenProposal) -> None:
    """Check that a decision can still be taken."""
    proposal = opened.record
    if opened.review is not None:
        raise StaleApproval(
            f"proposal {opened.short} of cycle {proposal.cycle} was decided already: {opened.review.decision} by "
            f"{opened.review.actor}; a decision is final, removed points come back with `tamis ledger restore`"
        )
    if opened.lapsed(utc_now()):
        raise StaleApproval(
            f"proposal {opened.short} of cycle {proposal.cycle} expired at {opened.expires_at:%Y-%m-%d %H:%M} UTC, "
            f"{opened.terms.expires_hours:g} h after it was proposed; `tamis run` ends the cycle without it, and the "
            "next one proposes anew"
        )


def _struck_before(con: duckdb.DuckDBPyConnection, given: str, texts: Collection[str]) -> ProposalRecord | None:
    """The open proposal, if it is what was left when these very points were struck: the call is repeated."""
    opened, given = open_proposal(con), given.strip().lower()
    if opened is None or not PREFIX.fullmatch(given) or opened.record.hash.startswith(given):
        return None
    query = """
        FROM proposals p SEMI JOIN events e ON e.cycle = p.cycle AND e.state = 'superseded'
             AND e.key = concat(p.hash, '/', $left) AND starts_with(p.hash, $given)
        SELECT p.* EXCLUDE (seq) WHERE p.cycle = $cycle"""
    asked = {"cycle": opened.record.cycle, "left": opened.record.hash, "given": given}
    for whole in records(con, ProposalRecord, query, asked):
        before, now = (set(proposal_of(con, one).points) for one in (whole, opened.record))
        if {id_text(point) for point in before - now} == texts:
            return opened.record
    return None


def _without(whole: Proposal, texts: Collection[str]) -> Proposal:
    """A proposal without some of its points; refuses to take those that it does not name, none, or all."""
    kept = [id_text(point) not in texts for point in whole.points]
    unknown = sorted(frozenset(texts) - {id_text(point) for point in whole.points})
    if unknown or not texts:
        more = f" and {len(unknown) - SHOWN:,} more" if len(unknown) > SHOWN else ""
        said = f"does not name {', '.join(unknown[:SHOWN])}{more}" if unknown else "keeps all its points: name some"
        raise StaleApproval(f"proposal {whole.hash[:12]} {said}; nothing was struck and nothing decided")
    if not any(kept):
        raise StaleApproval(
            f"all {whole.size:,} points of proposal {whole.hash[:12]} would be struck: that is a rejection, "
            f"`tamis reject {whole.hash[:12]} --by NAME`"
        )
    return replace(whole, rows=whole.rows.filter(pa.array(kept)))


def plain_name(actor: str) -> str:
    """One text for a name however it is written; empty where nothing of it can be seen."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", actor).casefold())
    seen = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")  # e.g. zero-width spaces
    return " ".join(seen.split())
