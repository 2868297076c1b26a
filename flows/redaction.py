"""What must not be written down: values of options that are named like secrets, and passwords in addresses.

The ledger, MLflow, cycle.json and the log show `***` in their place. Keys of stages are digests of the whole
configuration, so another secret still counts as another configuration. The plans of the ranks hold the options as they
are, readable by their owner alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
NAMED = re.compile(r"passw|passphrase|secret|token|credential|(^|[_-])(api|access|private)?[_-]?key$", re.IGNORECASE)
ADDRESS = re.compile(r"(?<=://)([^\s/@:]*):([^\s/@]+)@")
SHORTEST = 4
"""A value of fewer characters is not looked for in texts, where it would hide half of them."""


def without_password(text: str) -> str:
    """A text with the password of every address in it hidden."""
    return ADDRESS.sub(rf"\1:{HIDDEN}@", text)


def redacted(value: Any) -> Any:
    """Settings as they may be shown: values of keys that are named like a secret are hidden, and passwords in texts."""
    if isinstance(value, Mapping):
        return {key: HIDDEN if _is_secret(key, item) else redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return without_password(value) if isinstance(value, str) else value


def secrets_in(value: Any) -> frozenset[str]:
    """Every text that `redacted` hides."""
    found: set[str] = set()
    if isinstance(value, Mapping):
        for key, item in value.items():
            found |= _texts(item) if _is_secret(key, item) else secrets_in(item)
    elif isinstance(value, list | tuple):
        found = found.union(*map(secrets_in, value))
    elif isinstance(value, str):
        found = {match[2] for match in ADDRESS.finditer(value)}
    return frozenset(text for text in found if len(text) >= SHORTEST)


def hide(text: str, secrets: frozenset[str]) -> str:
    """A text without these, and without passwords in addresses."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return without_password(text)


def _is_secret(key: Any, item: Any) -> bool:
    return bool(NAMED.search(str(key))) and item not in (None, "", [], {})


def _texts(item: Any) -> set[str]:
    if isinstance(item, Mapping):
        return set().union(*map(_texts, item.values()))
    if isinstance(item, list | tuple):
        return set().union(*map(_texts, item))
    return {str(item)}
