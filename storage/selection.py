"""From scores to the rows of a proposal: all SQL over score shards, run by DuckDB out of core.

A candidate is a point still in train that some rule chooses. Protected points and points in cooldown leave first. The
others are put in one order: by the turn of their rule, then by its rank column, smallest first, ties by point_id: the
rules say who may go, the rank who goes first. storage/budgets.py takes that order greedily. Points removed earlier
that are missed come back beside it, within no budget.

Only comparisons and ranks decide, never sums, so the result does not depend on threads or on the order of shards.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from storage import policy_sql
from storage.budgets import TOTALS, WITHIN, Budgets, Cells, Integers, Outcome, spend
from storage.errors import StorageError
from storage.points import PointId
from storage.policies import Regret, Rule
from storage.score_sql import Scores, add_view, open_scores, quote, register_ids

BATCH = 1 << 16


@dataclass(frozen=True)
class Selection:
    """What the rules and budgets chose.

    Args:
        rows: The proposed points, sorted by point_id: point_id, action, new_label, reason, policies, score, threshold,
            rank, evidence (list of {policy, column, value, threshold}, in the order of the rules). score and threshold
            are those of the first rule that chose the point.
        candidates: In-train candidates of each policy, before budgets.
        dropped: Candidates lost to each budget, counted at the first that refused them.
        points: Rows scored, removed ones included.
        in_train: Points now in train.
        limit: Most points that the cycle, cumulative and minimum_kept budgets allow together.
        held_back: What kept the candidate that was asked about from being proposed, by its name in `dropped`; empty
            where nothing did.
    """

    rows: pa.Table
    candidates: dict[str, int]
    dropped: dict[str, int]
    points: int
    in_train: int
    limit: int
    held_back: str = ""


def select(
    folder: Path,
    rules: Sequence[Rule],
    budgets: Budgets,
    regret: Regret | None = None,
    asked: PointId | None = None,
) -> Selection:
    """Choose the points to propose (see the module docstring).

    Args:
        folder: Finished score shards.
        rules: At least one; each policy once.
        budgets: How much may go.
        regret: What may come back, if the cycle before was scored.
        asked: A point of which to say what held it back.

    Raises:
        ScoresInvalid: a rule names a column that the scores do not have.
        StorageError: no rule, or a policy named twice.
    """
    names = [rule.policy for rule in rules]
    if not names or len(set(names)) < len(names):
        raise StorageError(f"at least one policy is needed and each only once; got {', '.join(names) or 'none'}")
    with open_scores(folder, frozenset[str]().union(*(rule.columns for rule in rules))) as scores:
        con = scores.connection
        _prepare(scores, budgets, regret)
        con.execute(*policy_sql.candidates(rules))
        for statement in policy_sql.orphaned(rules):
            con.execute(statement)
        [(*counts, protected, cooldown)] = con.sql(policy_sql.counts(rules)).fetchall()
        excluded = con.execute(policy_sql.EXCLUDED, [asked]).fetchall() if asked is not None else []
        con.execute(policy_sql.ranked(rules))
        con.execute("DROP TABLE candidates")
        cells = _cells(con)
        outcome = spend(cells, budgets, _order(con))
        _register(con, outcome)
        limits = {"binding": outcome.binding, "last": outcome.last}
        fates = dict(con.execute(policy_sql.REFUSED, limits).fetchall())
        late = con.execute(policy_sql.REFUSAL, {**limits, "asked": asked}).fetchall() if asked is not None else []
        dropped = {"protected": protected, "cooldown": cooldown}
        return Selection(
            rows=_rows(con, rules, outcome, regret),
            candidates=dict(zip(names, counts, strict=True)),
            dropped=dropped | {name: fates.get(name, 0) for name in (*WITHIN, *TOTALS)},
            points=int(cells.points.sum()),
            in_train=int(cells.in_train.sum()),
            limit=outcome.limit,
            held_back=next((name for (name,) in (*excluded, *late)), ""),
        )


def _prepare(scores: Scores, budgets: Budgets, regret: Regret | None) -> None:
    """Make the views and tables that the statements of policy_sql read, `cells` among them."""
    con = scores.connection
    absent = {"label": "CAST(NULL AS INTEGER) AS label", "group": 'CAST(NULL AS VARCHAR) AS "group"'}
    more = "".join(f", {column}" for name, column in absent.items() if name not in scores.columns)
    con.execute(f"CREATE TEMP VIEW labelled AS SELECT *{more} FROM scores")
    register_ids(scores, "protected", budgets.protected)
    register_ids(scores, "cooldown", budgets.cooldown)
    groups = pa.table({"group": pa.array(sorted(budgets.protected_groups), pa.string())})
    con.register("protected_groups", groups)
    if budgets.relabeled:
        register_ids(scores, "relabeled", budgets.relabeled, list(budgets.relabeled.values()))
    con.execute(policy_sql.GIVEN if budgets.relabeled else policy_sql.UNCHANGED)
    if regret is not None:
        add_view(scores, "before", regret.before)
    con.execute(policy_sql.CELLS)


def _cells(con: duckdb.DuckDBPyConnection) -> Cells:
    table = con.sql(
        'SELECT label, "group", points, in_train, spent, relabeled FROM cells ORDER BY cell'
    ).to_arrow_table()
    label, group = (table[name].combine_chunks() for name in ("label", "group"))
    numbers = (table[name].to_numpy().astype(np.int64) for name in ("points", "in_train", "spent", "relabeled"))
    return Cells(label, group, *numbers)


def _order(con: duckdb.DuckDBPyConnection) -> Iterator[Integers]:
    for batch in con.sql(policy_sql.ORDER).to_arrow_reader(BATCH):
        yield batch.column(0).to_numpy().astype(np.int64)


def _register(con: duckdb.DuckDBPyConnection, outcome: Outcome) -> None:
    cells = np.arange(len(outcome.through), dtype=np.int32)
    table = pa.table({"cell": cells, "through": outcome.through, "refused": pa.array(outcome.refused, pa.string())})
    con.register("outcome", table)


def _rows(con: duckdb.DuckDBPyConnection, rules: Sequence[Rule], outcome: Outcome, regret: Regret | None) -> pa.Table:
    query, values = policy_sql.proposed(rules)
    values["last"] = outcome.last
    if regret is not None:
        back, more = policy_sql.restored(regret, rules)
        query, values = f"{query} UNION ALL {back}", values | more
    return con.execute(f"SELECT * FROM ({query}) ORDER BY point_id", values).to_arrow_table()


def top(folder: Path, column: str, limit: int, columns: Sequence[str] | None = None) -> pa.Table:
    """The in-train points with the largest value of a column, ties by point_id, nulls left out.

    Args:
        folder: Score shards.
        column: The column that orders.
        limit: Most rows to return.
        columns: Columns to return beside point_id; all when None.
    """
    with open_scores(folder, {column, *(columns or ())}) as scores:
        order = f"{quote(column)} DESC, point_id"
        query = f"SELECT {scores.select_list(columns)} FROM scores WHERE in_train AND {quote(column)} IS NOT NULL"
        return scores.connection.sql(f"{query} ORDER BY {order} LIMIT ?", params=[limit]).to_arrow_table()


def rows_of(folder: Path, points: Collection[PointId], columns: Sequence[str] | None = None) -> pa.Table:
    """The score rows of some points, sorted by point_id; points without scores are left out.

    Args:
        folder: Score shards.
        points: The points wanted.
        columns: Columns to return beside point_id; all when None.
    """
    with open_scores(folder, set(columns or ())) as scores:
        register_ids(scores, "wanted", points)
        query = f"SELECT {scores.select_list(columns)} FROM scores WHERE point_id IN (FROM wanted) ORDER BY point_id"
        return scores.connection.sql(query).to_arrow_table()
