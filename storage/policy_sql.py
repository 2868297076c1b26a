"""SQL of a selection: candidates, their ranks, and the rows of those that go.

Every statement reads the view `given`: the scores, with the given label where a point was relabelled since. Numbers of
rows that are dropped are held narrow, in one column a rule and one for each further column that ranks; lists and texts
are made for the rows of a proposal alone. Turn and rank of a point are those of the rules that choose it in the end.
"""

from collections.abc import Sequence
from typing import Any

from storage.policies import COPY_OF, Regret, Rule
from storage.score_sql import quote

GIVEN = """
CREATE TEMP VIEW given AS
SELECT s.* EXCLUDE (label), coalesce(r.label, s.label) AS label, s.label AS current_label,
       r.point_id IS NOT NULL AS was_relabeled
FROM labelled s LEFT JOIN relabeled r USING (point_id)
"""

UNCHANGED = "CREATE TEMP VIEW given AS SELECT *, label AS current_label, false AS was_relabeled FROM labelled"

CELLS = """
CREATE TEMP TABLE cells AS
SELECT row_number() OVER (ORDER BY label, "group") - 1 AS cell, *
FROM (SELECT label, "group", count(*) AS points, count(*) FILTER (in_train) AS in_train,
             count(*) FILTER (NOT in_train OR was_relabeled) AS spent,
             count(*) FILTER (in_train AND was_relabeled) AS relabeled
      FROM given GROUP BY label, "group")
"""

CANDIDATES = """
CREATE TEMP TABLE candidates AS
SELECT *, CASE WHEN point_id IN (FROM protected) OR "group" IN (FROM protected_groups) THEN 'protected'
               WHEN point_id IN (FROM cooldown) THEN 'cooldown' END AS excluded
FROM (SELECT point_id, label, "group", {columns} FROM given WHERE in_train AND ({chosen}))
"""

ORPHANED = """
UPDATE candidates SET value_{i} = NULL
WHERE {repeats} IN (SELECT point_id FROM candidates WHERE {others})
"""

UNCHOSEN = "DELETE FROM candidates WHERE {nobody}"

RANKED = """
CREATE TEMP TABLE ranked AS
SELECT CAST(cell AS INTEGER) AS cell, c.* EXCLUDE (label, "group", excluded{ranks})
FROM candidates c JOIN cells ON cells.label IS NOT DISTINCT FROM c.label
                             AND cells."group" IS NOT DISTINCT FROM c."group"
WHERE excluded IS NULL ORDER BY {turn}, {rank} NULLS LAST, point_id
"""

COUNTS = """
SELECT {sums}, count(*) FILTER (excluded = 'protected'), count(*) FILTER (excluded = 'cooldown') FROM candidates
"""

ORDER = "SELECT cell FROM ranked ORDER BY rowid"

REFUSED = """
SELECT CASE WHEN rowid + 1 > through THEN refused ELSE $binding END AS budget, count(*)
FROM ranked JOIN outcome USING (cell) WHERE rowid + 1 > least(through, $last) GROUP BY budget
"""

EXCLUDED = "SELECT excluded FROM candidates WHERE point_id = ? AND excluded IS NOT NULL"

REFUSAL = """
SELECT CASE WHEN rowid + 1 > through THEN refused ELSE $binding END
FROM ranked JOIN outcome USING (cell) WHERE rowid + 1 > least(through, $last) AND point_id = $asked
"""

PROPOSED = """
SELECT point_id, CASE WHEN new_label IS NULL THEN 'remove' ELSE 'relabel' END AS action, new_label,
       {reason} AS reason, [c.policy FOR c IN choices] AS policies, choices[1].value AS score,
       choices[1].threshold AS threshold, rank, choices AS evidence
FROM (SELECT point_id, new_label, rowid + 1 AS rank, {columns},
             [choice FOR choice IN [{choices}] IF choice IS NOT NULL] AS choices
      FROM ranked JOIN outcome USING (cell) WHERE rowid + 1 <= least(through, $last))
"""

CHOICE = """
CASE WHEN value_{i} IS NOT NULL
     THEN {{policy: $policy_{i}, "column": $column_{i}, value: value_{i},
            threshold: CAST($threshold_{i} AS DOUBLE)}} END
"""

RESTORED = """
SELECT now.point_id, 'restore' AS action, CAST(NULL AS INTEGER) AS new_label, 'regret' AS reason,
       ['regret'] AS policies, now.influence AS score, $z * now.influence_se AS threshold, CAST(NULL AS BIGINT) AS rank,
       [{policy: 'regret', "column": 'influence', value: now.influence, threshold: $z * now.influence_se},
        {policy: 'regret', "column": 'influence of the cycle before', value: before.influence,
         threshold: $z * before.influence_se}] AS evidence
FROM given now JOIN before USING (point_id)
WHERE NOT now.in_train AND NOT before.in_train AND now.influence > $z * now.influence_se
      AND before.influence > $z * before.influence_se
      AND now.point_id NOT IN (FROM cooldown)
"""


def candidates(rules: Sequence[Rule]) -> tuple[str, dict[str, Any]]:
    """The statement that makes the table `candidates`, with its parameters."""
    tests, values = [], {}
    for i, rule in enumerate(rules):
        parts = [f"{quote(rule.column)} {rule.op} CAST($threshold_{i} AS DOUBLE)"]
        values[f"threshold_{i}"] = rule.threshold
        for k, one in enumerate(rule.also):
            parts.append(f"{quote(one.column)} {one.op} CAST($also_{i}_{k} AS DOUBLE)")
            values[f"also_{i}_{k}"] = one.threshold
        tests.append(f"({' AND '.join(parts)})")
    columns = [
        f"CASE WHEN {test} THEN CAST({quote(rule.column)} AS DOUBLE) END AS value_{i}"
        for i, (rule, test) in enumerate(zip(rules, tests, strict=True))
    ]
    columns += [f"CAST({quote(name)} AS DOUBLE) AS {held}" for name, held in _ranks(rules).items()]
    columns.append(_new_label(rules, tests))
    columns += sorted({quote(rule.repeats) for rule in rules if rule.repeats is not None})
    return CANDIDATES.format(columns=", ".join(columns), chosen=" OR ".join(tests)), values


def _ranks(rules: Sequence[Rule]) -> dict[str, str]:
    """Columns that rank and are not compared by the same rule, and where `candidates` holds each."""
    named = dict.fromkeys(rule.rank_column for rule in rules if rule.rank_column != rule.column)
    return {name: f"rank_{k}" for k, name in enumerate(named)}


def ranked(rules: Sequence[Rule]) -> str:
    """The statement that puts the candidates in order, each by the first turn of the rules that choose it."""
    held = _ranks(rules)
    turns = sorted(enumerate(rules), key=lambda pair: pair[1].turn)
    return RANKED.format(
        ranks="".join(f", {name}" for name in held.values()),
        turn=_first([(f"value_{i} IS NOT NULL", str(rule.turn)) for i, rule in turns], "TINYINT"),
        rank=_first(
            [(f"value_{i} IS NOT NULL", held.get(rule.rank_column, f"value_{i}")) for i, rule in turns], "DOUBLE"
        ),
    )


def _first(cases: Sequence[tuple[str, str]], kind: str) -> str:
    branches = " ".join(f"WHEN {test} THEN {value}" for test, value in cases)
    return f"CAST(CASE {branches} END AS {kind})"


def _new_label(rules: Sequence[Rule], tests: Sequence[str]) -> str:
    relabeling = [(rule.relabel, test) for rule, test in zip(rules, tests, strict=True) if rule.relabel is not None]
    if not relabeling:
        return "CAST(NULL AS INTEGER) AS new_label"
    branches = [(f"{test} AND {quote(to)} <> current_label", quote(to)) for to, test in relabeling]
    return f"{_first(branches, 'INTEGER')} AS new_label"


def orphaned(rules: Sequence[Rule]) -> list[str]:
    """The statements that take copies from the candidates of a rule where another rule chooses what they repeat."""
    every = [f"value_{i} IS NOT NULL" for i in range(len(rules))]
    statements = [
        ORPHANED.format(i=i, repeats=quote(rule.repeats), others=" OR ".join(every[:i] + every[i + 1 :]))
        for i, rule in enumerate(rules)
        if rule.repeats is not None and len(rules) > 1
    ]
    return [*statements, UNCHOSEN.format(nobody=f"NOT ({' OR '.join(every)})")] if statements else []


def counts(rules: Sequence[Rule]) -> str:
    """The statement that counts the candidates of each rule, then those protected and in cooldown."""
    return COUNTS.format(sums=", ".join(f"count(value_{i})" for i in range(len(rules))))


def proposed(rules: Sequence[Rule]) -> tuple[str, dict[str, Any]]:
    """The statement that reads what is removed or relabelled, with its parameters; it also takes `last`."""
    reasons = sorted({rule.reason for rule in rules})
    values: dict[str, Any] = {f"reason_{k}": reason for k, reason in enumerate(reasons)}
    parts = []
    for k, reason in enumerate(reasons):
        chosen = [f"value_{i} IS NOT NULL" for i, rule in enumerate(rules) if rule.reason == reason]
        parts.append(f"CASE WHEN {' OR '.join(chosen)} THEN $reason_{k} END")
    for i, rule in enumerate(rules):
        values |= {f"policy_{i}": rule.policy, f"column_{i}": rule.column, f"threshold_{i}": rule.threshold}
    named = [
        f"CASE WHEN value_{i} IS NOT NULL AND {quote(rule.repeats)} IS NOT NULL "
        f"THEN '{COPY_OF}' || {quote(rule.repeats)} ELSE '' END"
        for i, rule in enumerate(rules)
        if rule.repeats is not None
    ]
    columns = {quote(rule.repeats) for rule in rules if rule.repeats is not None}
    query = PROPOSED.format(
        reason=" || ".join([f"concat_ws('+', {', '.join(parts)})", *named]),
        columns=", ".join([*(f"value_{i}" for i in range(len(rules))), *sorted(columns)]),
        choices=", ".join(CHOICE.format(i=i) for i in range(len(rules))),
    )
    return query, values


def restored(regret: Regret, rules: Sequence[Rule]) -> tuple[str, dict[str, Any]]:
    """The statement that reads what is restored, with its parameters; the view `before` is there.

    What a rule would take as a copy again stays away.
    """
    copies = sorted({quote(rule.repeats) for rule in rules if rule.repeats is not None})
    return " AND ".join([RESTORED, *(f"now.{column} IS NULL" for column in copies)]), {"z": regret.z}
