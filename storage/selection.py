"""From scores to the rows of a proposal: all SQL over score shards, run by DuckDB out of core.

A candidate is a point still in train whose column passes a rule. Protected points and points in cooldown leave first.
Each policy ranks its candidates by its own column; a point's joint rank is the best of its ranks, ties by point_id, so
that no policy's unit is compared with another's. Budgets then take the joint order greedily:

    class cap   the first floor(per_class * n_y) - removed_y of each given label y (n_y counts removed points too)
    limit       the first min(cycle, cumulative, minimum_kept) of what the class caps left

Only comparisons and ranks decide, never sums, so the result does not depend on threads or on the order of shards.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import duckdb
import pyarrow as pa

from storage.errors import InvalidBudget, StorageError
from storage.files import JSON
from storage.points import PointId
from storage.score_sql import open_scores, quote, register_ids

Op: TypeAlias = Literal["<", "<=", ">", ">="]

CANDIDATES = """
CREATE TEMP TABLE candidates AS
WITH chosen AS ({chosen})
SELECT *, row_number() OVER (PARTITION BY policy, excluded ORDER BY rank_value NULLS LAST, point_id) AS rank
FROM (SELECT *, CASE WHEN point_id IN (FROM protected) THEN 'protected'
                     WHEN point_id IN (FROM cooldown) THEN 'cooldown' END AS excluded FROM chosen)
"""

CHOSEN = """
SELECT point_id, {label} AS label, $policy_{i} AS policy, $reason_{i} AS reason, $column_{i} AS "column",
       CAST({column} AS DOUBLE) AS value, CAST($threshold_{i} AS DOUBLE) AS threshold,
       {sign} CAST({rank} AS DOUBLE) AS rank_value
FROM scores WHERE in_train AND {column} {op} CAST($threshold_{i} AS DOUBLE)
"""

FATES = """
CREATE TEMP TABLE fates AS
WITH caps AS (
    SELECT {label} AS label,
           greatest(0, floor($per_class * count(*) + 1e-9) - count(*) FILTER (NOT in_train)) AS cap
    FROM scores GROUP BY ALL
), joint AS (
    SELECT point_id, any_value(label) AS label, any_value(excluded) AS excluded, min(rank) AS rank,
           string_agg(DISTINCT reason, '+' ORDER BY reason) AS reason,
           list({{policy: policy, "column": "column", value: value, threshold: threshold, rank: rank}}
                ORDER BY rank, policy) AS evidence
    FROM candidates GROUP BY point_id
), in_class AS (
    SELECT joint.*, joint.label IS NULL
           OR row_number() OVER (PARTITION BY joint.label ORDER BY rank, point_id) <= cap AS fits
    FROM joint LEFT JOIN caps USING (label) WHERE excluded IS NULL
), placed AS (
    SELECT *, row_number() OVER (PARTITION BY fits ORDER BY rank, point_id) AS place FROM in_class
)
SELECT * EXCLUDE (fits, place, excluded),
       CASE WHEN NOT fits THEN 'per_class' WHEN place > $limit THEN $binding ELSE 'proposed' END AS fate FROM placed
UNION ALL BY NAME
SELECT * EXCLUDE (excluded), excluded AS fate FROM joint WHERE excluded IS NOT NULL
"""

PROPOSED = """
SELECT point_id, 'remove' AS action, reason, [e.policy FOR e IN evidence] AS policies,
       evidence[1].value AS score, evidence[1].threshold AS threshold, rank, evidence
FROM fates WHERE fate = 'proposed' ORDER BY point_id
"""


@dataclass(frozen=True)
class Rule:
    """A policy as data: a point is a candidate if `column op threshold`; null never is.

    Args:
        policy: Name of the policy.
        reason: Reason code of its proposals.
        column: The score column that is compared.
        op: The comparison.
        threshold: In the unit of `column`; evidence, so it does not enter the proposal hash.
        rank_column: The score column that orders the candidates, smallest first.
        descending: Largest first instead.
        parameters: What the user set, e.g. {"q": 0.2}; enters the proposal hash.
    """

    policy: str
    reason: str
    column: str
    op: Op
    threshold: float
    rank_column: str
    descending: bool = False
    parameters: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class Budgets:
    """How much may go.

    Args:
        cycle: Share in (0, 1] of the points now in train.
        cumulative: Share in (0, 1] of all points, those removed earlier included, which count as spent.
        per_class: The same within each given label; points without a label have no class cap.
        minimum_kept: Points that stay in train whatever the shares say.
        protected: Points never removed.
        cooldown: Points not proposed again yet.
    """

    cycle: float
    cumulative: float
    per_class: float
    minimum_kept: int = 1
    protected: frozenset[PointId] = frozenset()
    cooldown: frozenset[PointId] = frozenset()

    def __post_init__(self) -> None:
        """Refuse a share outside (0, 1] and a negative minimum."""
        for name in ("cycle", "cumulative", "per_class"):
            share = getattr(self, name)
            if not 0 < share <= 1:
                raise InvalidBudget(f"budget {name} = {share}; give a share above 0 and at most 1, e.g. 0.15")
        if self.minimum_kept < 1:
            raise InvalidBudget(f"budget minimum_kept = {self.minimum_kept}; keep at least 1 point")


@dataclass(frozen=True)
class Selection:
    """What the rules and budgets chose.

    Args:
        rows: The proposed points, sorted by point_id: point_id, action, reason, policies, score, threshold, rank,
            evidence (list of {policy, column, value, threshold, rank}).
        candidates: In-train candidates of each policy, before budgets.
        dropped: Candidates lost to each budget, counted at the first that refused them.
        points: Rows scored, removed ones included.
        in_train: Points now in train.
        limit: Most points that the cycle, cumulative and minimum_kept budgets allow together.
    """

    rows: pa.Table
    candidates: dict[str, int]
    dropped: dict[str, int]
    points: int
    in_train: int
    limit: int


def policy_json(rules: Sequence[Rule], budgets: Budgets) -> dict[str, JSON]:
    """What the user set, for the proposal hash: rule names and parameters and the budgets; never a score."""
    return {
        "rules": [
            {"policy": rule.policy, "reason": rule.reason, "parameters": dict(rule.parameters)}
            for rule in sorted(rules, key=lambda rule: rule.policy)
        ],
        "budgets": {
            "cycle": budgets.cycle,
            "cumulative": budgets.cumulative,
            "per_class": budgets.per_class,
            "minimum_kept": budgets.minimum_kept,
        },
    }


def _share(share: float, count: int) -> int:
    """floor(share * count), where 0.29 * 100 is 29 although its float product is 28.999…."""
    return math.floor(share * count + 1e-9)


def select(folder: Path, rules: Sequence[Rule], budgets: Budgets) -> Selection:
    """Choose the points to propose for removal (see the module docstring).

    Args:
        folder: Finished score shards.
        rules: At least one; each policy once.
        budgets: How much may go.

    Raises:
        ScoresInvalid: a rule names a column that the scores do not have.
        StorageError: no rule, or a policy named twice.
    """
    names = [rule.policy for rule in rules]
    if not names or len(set(names)) < len(names):
        raise StorageError(f"at least one policy is needed and each only once; got {', '.join(names) or 'none'}")
    used = {column for rule in rules for column in (rule.column, rule.rank_column)}
    with open_scores(folder, used) as scores:
        con = scores.connection
        label = "label" if "label" in scores.columns else "CAST(NULL AS INTEGER)"
        register_ids(scores, "protected", budgets.protected)
        register_ids(scores, "cooldown", budgets.cooldown)
        _find_candidates(con, rules, label)
        points, in_train = _counts(con)
        limits = _limits(budgets, points, in_train)
        binding = min(limits, key=lambda name: limits[name])
        con.execute(
            FATES.format(label=label),
            {"per_class": budgets.per_class, "limit": limits[binding], "binding": binding},
        )
        candidates = dict(con.sql("SELECT policy, count(*) FROM candidates GROUP BY policy").fetchall())
        fates = dict(con.sql("SELECT fate, count(*) FROM fates GROUP BY fate").fetchall())
        return Selection(
            rows=con.sql(PROPOSED).to_arrow_table(),
            candidates={name: candidates.get(name, 0) for name in names},
            dropped={name: fates.get(name, 0) for name in ("protected", "cooldown", "per_class", *limits)},
            points=points,
            in_train=in_train,
            limit=limits[binding],
        )


def _find_candidates(con: duckdb.DuckDBPyConnection, rules: Sequence[Rule], label: str) -> None:
    chosen, values = [], {}
    for i, rule in enumerate(rules):
        sign = "-" if rule.descending else "+"
        column, rank = quote(rule.column), quote(rule.rank_column)
        chosen.append(CHOSEN.format(i=i, label=label, column=column, rank=rank, op=rule.op, sign=sign))
        for name in ("policy", "reason", "column", "threshold"):
            values[f"{name}_{i}"] = getattr(rule, name)
    con.execute(CANDIDATES.format(chosen=" UNION ALL ".join(chosen)), values)


def _counts(con: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    [(points, in_train)] = con.sql("SELECT count(*), count(*) FILTER (in_train) FROM scores").fetchall()
    return points, in_train


def _limits(budgets: Budgets, points: int, in_train: int) -> dict[str, int]:
    removed = points - in_train
    return {
        "cycle": _share(budgets.cycle, in_train),
        "cumulative": max(0, _share(budgets.cumulative, points) - removed),
        "minimum_kept": max(0, in_train - budgets.minimum_kept),
    }


def top(
    folder: Path, column: str, limit: int, descending: bool = True, columns: Sequence[str] | None = None
) -> pa.Table:
    """The in-train points with the largest (or smallest) value of a column, ties by point_id, nulls left out.

    Args:
        folder: Score shards.
        column: The column that orders.
        limit: Most rows to return.
        descending: Largest first.
        columns: Columns to return beside point_id; all when None.
    """
    with open_scores(folder, {column, *(columns or ())}) as scores:
        order = f"{quote(column)} {'DESC' if descending else 'ASC'}, point_id"
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
