"""What `tamis check` and `tamis doctor` find: one line for each thing that must hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flows.printing import write_json


@dataclass(frozen=True)
class Finding:
    """One line of a check."""

    name: str
    ok: bool
    text: str


def print_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    """The outcome of a check."""
    if as_json:
        write_json(findings)
        return
    for finding in findings:
        print(f"{'ok   ' if finding.ok else 'WRONG'} {finding.name}: {finding.text}")
