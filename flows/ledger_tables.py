"""What `tamis ledger` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table

from flows.comparison import Difference, Regrets
from flows.drops import Drop
from flows.evidence import Account, Scores, Unmet, Verdict
from flows.printing import console, short, visible, write_json
from storage.chain import Verification
from storage.policies import reason_code
from storage.records import ActionRecord, EventRecord, Mention

SHOWN = 50
NAMED = 3
STATUS = {
    "removed": "is removed",
    "relabeled": "is in the train set with another label",
    "restored": "was restored: it is in the train set",
    "kept": "is in the train set, and nothing was ever done to it",
}
FATES = {
    "approve": "approve",
    "reject": "reject",
    "strike": "struck out",
    "supersede": "another proposal was made of it",
    "expire": "expired",
}
DATA = {
    "other content": "the data set has other content under this id now: a new point, to which none of this applies",
    "vanished": "the data set no longer has it",
}


def print_log(events: Sequence[EventRecord], *, as_json: bool) -> None:
    """The ledger's events."""
    if as_json:
        write_json(events)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("when", "cycle", "event", "by", "detail"):
        table.add_column(column)
    for event in events:
        detail = ", ".join(f"{key} {short(value)}" for key, value in event.detail.items() if value not in ("", None))
        when = f"{event.event_at:%Y-%m-%d %H:%M:%S}"
        table.add_row(when, str(event.cycle), event.state, visible(event.actor), visible(detail))
    console(markup=False).print(table)


def print_account(account: Account, *, as_json: bool) -> None:
    """Everything that is known of a point."""
    if as_json:
        write_json(account)
        return
    lines = [f"point {account.point_id} {STATUS[account.status]}"]
    lines += [DATA[account.data]] if account.data in DATA else []
    lines += [
        *map(_mention, account.proposals),
        *(_action(action, account.origin(action)) for action in account.actions),
    ]
    lines += map(_drop, account.drops)
    lines += [_drops_unknown(account.drops_unknown)] if account.drops_unknown else []
    lines += _scores(account.scores) if account.scores is not None else []
    for line in lines:
        print(visible(line))


def _drop(drop: Drop) -> str:
    return (
        f"cycle {drop.cycle}: the training {drop.model} went on without it after epoch {drop.epoch}, for itself alone: "
        f"influence {drop.influence:.3g} ± {drop.influence_se:.2g} nats then"
    )


def _drops_unknown(trainings: Sequence[tuple[int, str]]) -> str:
    named = ", ".join(f"{model} of cycle {cycle}" for cycle, model in trainings[:NAMED])
    more = f" and {len(trainings) - NAMED:,} more" if len(trainings) > NAMED else ""
    return (
        "whether it was among the points dropped while learning, nobody can tell: gone or altered is the list of "
        f"{named}{more}"
    )


def _mention(mention: Mention) -> str:
    decided = f"{FATES[mention.decision]} by {mention.actor}" if mention.decision else "not decided"
    what = _what(mention.action, mention.new_label)
    return (
        f"cycle {mention.cycle}: proposal {mention.proposal[:12]} named it to {what} "
        f"({mention.reason}{_score(mention.score, mention.threshold)}): {decided}"
    )


def _action(action: ActionRecord, origin: ActionRecord) -> str:
    again = "" if origin is action else f"again, as cycle {origin.cycle} did by {origin.actor}, "
    what = _what(action.action, action.new_label)
    line = f"cycle {action.cycle}: {what} {again}at {action.event_at:%Y-%m-%d %H:%M:%S} "
    line += f"by {action.actor}: {action.reason}{_score(action.score, action.threshold)}"
    if action.checkpoint_digest is not None:
        line += f", estimator {action.estimator}, checkpoint {action.checkpoint_digest[:12]}, "
        line += f"proposal {short(action.proposal)}"
    return line


def _what(action: str, new_label: int | None) -> str:
    return action if new_label is None else f"{action} as {new_label}"


def _score(score: float | None, threshold: float | None) -> str:
    named = {"score": score, "threshold": threshold}
    return "".join(f", {name} {value:.6g}" for name, value in named.items() if value is not None)


def _scores(scores: Scores) -> list[str]:
    where = f"rank {scores.rank:,} of {scores.of:,}, most harmful first" if scores.in_train else "if it were added"
    lines = [
        f"cycle {scores.cycle} scored it: influence {scores.influence:.3g} ± {scores.influence_se:.2g} nats ({where})"
    ]
    if scores.copy_of is not None:
        lines.append(f"it is an exact copy of point {scores.copy_of}, which is in training")
    if scores.in_train:
        lines += [_verdict(verdict) for verdict in scores.verdicts]
        if not scores.recorded:
            lines.append(
                f"by which rules cycle {scores.cycle} judged it, the ledger does not tell this version of Tamis"
            )
    if scores.held_back:
        lines.append(f"chosen by a rule and not proposed: {scores.held_back}")
    for name, tops in {"helps": scores.helped, "harms": scores.harmed}.items():
        if tops:
            lines.append(f"{name} most the queries " + ", ".join(f"{query} ({value:.2g})" for query, value in tops))
    return lines


def _verdict(verdict: Verdict) -> str:
    said = "chooses it" if verdict.chosen else "does not choose it"
    return "; ".join([f"policy {verdict.policy} {said}: {_compared(verdict)}", *map(_compared, verdict.unmet)])


def _compared(said: Verdict | Unmet) -> str:
    value = "none" if said.value is None else f"{said.value:.3g}"
    return f"{said.column} {value}, chosen if {said.op} {said.threshold:g}"


def print_difference(difference: Difference, *, as_json: bool) -> None:
    """What was done between two cycles, counted by reason and class."""
    if as_json:
        write_json(difference)
        return
    before = f"cycle {difference.before}" if difference.before else "first given"
    print(f"{len(difference.points):,} points of the data as {before} are not the same as of cycle {difference.after}")
    table = Table("change", "reason", "class", "points", "for example", box=None, pad_edge=False)
    for row in difference.counts:
        alike = (row.change, row.reason, row.label)
        same = [p.point_id for p in difference.points if (p.change, reason_code(p.reason), p.label) == alike]
        label = "" if row.label is None else str(row.label)
        table.add_row(row.change, visible(row.reason), label, f"{row.points:,}", visible(", ".join(same[:5])))
    if difference.counts:
        console(markup=False).print(table)


def print_regrets(regrets: Regrets, *, as_json: bool) -> None:
    """Removed points that the newest scores call helpful."""
    if as_json:
        write_json(regrets)
        return
    cycles = ", ".join(f"{count:,} of cycle {cycle}" for cycle, count in regrets.by_cycle.items())
    print(
        f"{len(regrets.points):,} of {regrets.removed:,} removed points would help if they were added, say the scores "
        f"of cycle {regrets.scored}" + (f": {cycles}" if cycles else "")
    )
    table = Table("point", "removed in", "reason", "influence (nats)", "z", box=None, pad_edge=False)
    for point in regrets.points[:SHOWN]:
        influence = f"{point.influence:.3g} ± {point.influence_se:.2g}"
        table.add_row(
            visible(point.point_id), f"cycle {point.cycle}", visible(point.reason), influence, f"{point.z:.1f}"
        )
    if regrets.points:
        console(markup=False).print(table)
    if len(regrets.points) > SHOWN:
        print(f"and {len(regrets.points) - SHOWN:,} more: --json lists all")


def print_verification(found: Verification, *, as_json: bool) -> None:
    """Whether the ledger is as it was written."""
    if as_json:
        write_json({**asdict(found), "holds": found.holds})
        return
    if found.broken is not None:
        print(f"BROKEN after {found.rows:,} rows: {found.broken.text}")
    else:
        print(f"{found.rows:,} rows verified, head {found.head}")
    if found.anchored is False:
        print("BROKEN: the head that was given is no link of this chain: it was computed anew or cut since")
