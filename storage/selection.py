"""From scores to the rows of a proposal: all SQL over score shards, run by DuckDB out of core.

A candidate is a point still in train that some rule chooses. Protected points and points in cooldown leave first. One
column, the influence unless another is named, ranks the candidates of all rules together, smallest first, ties by
point_id: the rules say who may go, the rank who goes first. Budgets then take that order greedily:

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
WITH chosen AS (
    SELECT point_id, {label} AS label, {rank_column} AS rank_value,
           [choice FOR choice IN [{choices}] IF choice IS NOT NULL] AS choices,
           CASE WHEN point_id IN (FROM protected) THEN 'protected'
                WHEN point_id IN (FROM cooldown) THEN 'cooldown' END AS excluded
    FROM scores WHERE in_train
)
SELECT *, row_number() OVER (PARTITION BY excluded ORDER BY rank_value NULLS LAST, point_id) AS rank
FROM chosen WHERE len(choices) > 0
"""

CHOICE = """
CASE WHEN {column} {op} CAST($threshold_{i} AS DOUBLE)
     THEN {{policy: $policy_{i}, reason: $reason_{i}, "column": $column_{i}, value: CAST({column} AS DOUBLE),
            threshold: CAST($threshold_{i} AS DOUBLE)}} END
"""

FATES = """
CREATE TEMP TABLE fates AS
WITH caps AS (
    SELECT {label} AS label,
           greatest(0, floor($per_class * count(*) + 1e-9) - count(*) FILTER (NOT in_train)) AS cap
    FROM scores GROUP BY ALL
), in_class AS (
    SELECT candidates.*, candidates.label IS NULL
           OR row_number() OVER (PARTITION BY candidates.label ORDER BY rank) <= cap AS fits
    FROM candidates LEFT JOIN caps USING (label) WHERE excluded IS NULL
), placed AS (
    SELECT *, row_number() OVER (PARTITION BY fits ORDER BY rank) AS place FROM in_class
)
SELECT point_id, choices, rank,
       CASE WHEN NOT fits THEN 'per_class' WHEN place > $limit THEN $binding ELSE 'proposed' END AS fate FROM placed
UNION ALL
SELECT point_id, choices, rank, excluded FROM candidates WHERE excluded IS NOT NULL
"""

PROPOSED = """
SELECT point_id, 'remove' AS action, CAST(NULL AS INTEGER) AS new_label,
       array_to_string(list_sort(list_distinct([c.reason FOR c IN choices])), '+') AS reason,
       [c.policy FOR c IN choices] AS policies, choices[1].value AS score, choices[1].threshold AS threshold, rank,
       [{policy: c.policy, "column": c."column", value: c.value, threshold: c.threshold} FOR c IN choices] AS evidence
FROM fates WHERE fate = 'proposed' ORDER BY point_id
"""

BY_POLICY = """
SELECT policy, count(*) FROM (SELECT unnest([c.policy FOR c IN choices]) AS policy FROM candidates) GROUP BY policy
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
        parameters: What the user set, e.g. {"q": 0.2}; enters the proposal hash.
    """

    policy: str
    reason: str
    column: str
    op: Op
    threshold: float
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
            evidence (list of {policy, column, value, threshold}, in the order of the rules). score and threshold are
            those of the first rule that chose the point.
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


def policy_json(rules: Sequence[Rule], budgets: Budgets, rank_column: str = "influence") -> dict[str, JSON]:
    """What the user set, for the proposal hash: rule names and parameters, budgets, the rank; never a score."""
    return {
        "rules": [
            {"policy": rule.policy, "parameters": dict(rule.parameters)}
            for rule in sorted(rules, key=lambda rule: rule.policy)
        ],
        "budgets": {
            "cycle": budgets.cycle,
            "cumulative": budgets.cumulative,
            "per_class": budgets.per_class,
            "minimum_kept": budgets.minimum_kept,
        },
        "rank_column": rank_column,
    }


def _share(share: float, count: int) -> int:
    """floor(share * count), where 0.29 * 100 is 29 although its float product is 28.999…."""
    return math.floor(share * count + 1e-9)


def select(folder: Path, rules: Sequence[Rule], budgets: Budgets, rank_column: str = "influence") -> Selection:
    """Choose the points to propose for removal (see the module docstring).

    Args:
        folder: Finished score shards.
        rules: At least one; each policy once.
        budgets: How much may go.
        rank_column: The score column that orders the candidates of all rules, smallest first, null last.

    Raises:
        ScoresInvalid: a rule or the rank names a column that the scores do not have.
        StorageError: no rule, or a policy named twice.
    """
    names = [rule.policy for rule in rules]
    if not names or len(set(names)) < len(names):
        raise StorageError(f"at least one policy is needed and each only once; got {', '.join(names) or 'none'}")
    with open_scores(folder, {rank_column, *(rule.column for rule in rules)}) as scores:
        con = scores.connection
        label = "label" if "label" in scores.columns else "CAST(NULL AS INTEGER)"
        register_ids(scores, "protected", budgets.protected)
        register_ids(scores, "cooldown", budgets.cooldown)
        _find_candidates(con, rules, label, rank_column)
        points, in_train = _counts(con)
        limits = _limits(budgets, points, in_train)
        binding = min(limits, key=lambda name: limits[name])
        con.execute(
            FATES.format(label=label),
            {"per_class": budgets.per_class, "limit": limits[binding], "binding": binding},
        )
        candidates = dict(con.sql(BY_POLICY).fetchall())
        fates = dict(con.sql("SELECT fate, count(*) FROM fates GROUP BY fate").fetchall())
        return Selection(
            rows=con.sql(PROPOSED).to_arrow_table(),
            candidates={name: candidates.get(name, 0) for name in names},
            dropped={name: fates.get(name, 0) for name in ("protected", "cooldown", "per_class", *limits)},
            points=points,
            in_train=in_train,
            limit=limits[binding],
        )


def _find_candidates(con: duckdb.DuckDBPyConnection, rules: Sequence[Rule], label: str, rank_column: str) -> None:
    choices, values = [], {}
    for i, rule in enumerate(rules):
        choices.append(CHOICE.format(i=i, column=quote(rule.column), op=rule.op))
        for name in ("policy", "reason", "column", "threshold"):
            values[f"{name}_{i}"] = getattr(rule, name)
    query = CANDIDATES.format(label=label, rank_column=quote(rank_column), choices=", ".join(choices))
    con.execute(query, values)


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
