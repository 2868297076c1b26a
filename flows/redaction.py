"""What must not be written down: values of options that are named like secrets, and passwords in addresses.

The ledger, MLflow, cycle.json and the log show `***` in their place. Stages are keyed by digests of the configuration
as it is, so another secret still counts as another configuration. The plans of the ranks hold it as it is, too, and are
readable by their owner alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
NAMED = re.compile(
    r"(passw(or)?ds?|passphrase|secrets?|credentials?"
    r"|(api|access|private|secret|account|signing|encryption)[_-]?key"
    r"|(^|(access|auth|api|bearer|refresh|session|hf)[_-]?)token)$",
    re.IGNORECASE,
)
"""Neither `label_key` nor `pad_token` is a secret's: of keys and tokens only those of an access are."""
ADDRESS = re.compile(r"(?<=://)([^\s/@:]*):([^\s/@]+)@")
SHORTEST = 4
"""A secret of fewer characters is not looked for in texts, half of which it would hide."""


def without_password(text: str) -> str:
    """A text with the password of every address in it hidden."""
    return ADDRESS.sub(rf"\1:{HIDDEN}@", text)


def redacted(value: Any, named: bool = False) -> Any:
    """Settings as they may be shown.

    Args:
        value: A section, or whatever stands in one.
        named: Whether it stands under a name that makes every text and number in it a secret.
    """
    if isinstance(value, Mapping):
        return {key: redacted(item, named or bool(NAMED.search(str(key)))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, named) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if named:
        return value if value == "" else HIDDEN
    return without_password(value) if isinstance(value, str) else value


def secrets_in(value: Any, named: bool = False) -> frozenset[str]:
    """Every text that `redacted` hides, long enough to be looked for; its arguments."""
    if isinstance(value, Mapping):
        parts = [secrets_in(item, named or bool(NAMED.search(str(key)))) for key, item in value.items()]
        return frozenset().union(*parts)
    if isinstance(value, list | tuple):
        return frozenset().union(*(secrets_in(item, named) for item in value))
    if value is None or isinstance(value, bool):
        return frozenset()
    found = [str(value)] if named else [match[2] for match in ADDRESS.finditer(str(value))]
    return frozenset(text for text in found if len(text) >= SHORTEST)


def hide(text: str, secrets: frozenset[str]) -> str:
    """A text without these, and without passwords in addresses."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return without_password(text)
