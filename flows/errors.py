"""The two ways a command ends badly, and the exit code of each."""

from __future__ import annotations


class BadInput(Exception):
    """Something the user gave cannot be used: one line says what, what is allowed and what to do (exit code 2)."""


class StageFailed(Exception):
    """A stage broke although its input was good: the line names the stage, the rank and its log (exit code 1)."""
