"""What the parts of a report are made of: frozen rows, with names and numbers in the words of a reader."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Arm:
    """One arm on the holdout set: points trained on, optimizer steps, seeds; loss in nats, accuracy as a share."""

    name: str
    points: int
    steps: int
    seeds: int
    loss: Interval
    accuracy: Interval | None


@dataclass(frozen=True)
class Check:
    """One condition of promotion: a mean difference in nats, and in words what was compared with which limit."""

    name: str
    mean: float
    said: str
    passed: bool


@dataclass(frozen=True)
class Policy:
    """Why points are proposed.

    Attributes:
        meaning: What it looks for, in one sentence.
        parameters: As the user set them, e.g. "q = 0.2".
        candidates: Points it named, before budgets.
        proposed: Those of them that are proposed.
    """

    name: str
    meaning: str
    parameters: str
    candidates: int
    proposed: int


@dataclass(frozen=True)
class Tally:
    """One class or group: points now in training, and how many are to be removed, relabelled and restored."""

    name: str
    given: int
    remove: int
    relabel: int
    restore: int

    @property
    def share(self) -> float:
        """Of the points in training that are removed or relabelled; 0 where none is in training."""
        return (self.remove + self.relabel) / self.given if self.given else 0.0


@dataclass(frozen=True)
class Slice:
    """Points in training that share a value of something simple.

    Attributes:
        facet: What, e.g. "length".
        name: The value or range.
        total: Sum of their influence with its 95 % interval, nats.
        p: Of their mean influence being at least that of all other points, corrected for all slices.
        pattern: Whether that is too small for chance, and the sum harmful.
        proposed: Points that are to be removed or relabelled.
        share: They are of all such points.
        lift: That share over the slice's share of the points in training.
    """

    facet: str
    name: str
    points: int
    total: Interval
    p: float
    pattern: bool
    proposed: int
    share: float
    lift: float


@dataclass(frozen=True)
class Confusion:
    """Proposed points by label in force (rows) and suggested label (columns), where the two differ.

    Attributes:
        counts: [rows, columns].
        left_out: Points whose labels are not among those shown.
    """

    given: Sequence[str]
    suggested: Sequence[str]
    counts: Sequence[Sequence[int]]
    left_out: int

    @classmethod
    def of(cls, pairs: Mapping[tuple[str, str], int], most: int = 12) -> "Confusion | None":
        """The labels with the most points on each side, `most` at most; None where there is no pair."""
        if not pairs:
            return None
        given, suggested = (_frequent(pairs, side, most) for side in (0, 1))
        counts = [[pairs.get((one, other), 0) for other in suggested] for one in given]
        return cls(given, suggested, counts, sum(pairs.values()) - sum(map(sum, counts)))


def _frequent(pairs: Mapping[tuple[str, str], int], side: int, most: int) -> list[str]:
    counts = Counter[str]()
    for labels, count in pairs.items():
        counts[labels[side]] += count
    chosen = [label for label, _ in counts.most_common(most)]
    return sorted(chosen, key=lambda label: (len(label), label))  # numbers by value


@dataclass(frozen=True)
class Sample:
    """What a person is shown of a point or a query: a text, a PNG, or neither."""

    text: str = ""
    png: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.text) + len(self.png or b"")


@dataclass(frozen=True)
class Pull:
    """Influence of a point on one query, in nats: positive = helpful to it."""

    query_id: str
    influence: float


@dataclass(frozen=True)
class Tokens:
    """A point's tokens with their influence in nats, positive = helpful.

    Attributes:
        words: In their order, with the influence of each.
        rest: Of parts of the model that see no single token.
    """

    words: Sequence[tuple[str, float]]
    rest: float

    @property
    def size(self) -> int:
        """Bytes, about."""
        return sum(len(word) + 12 for word, _ in self.words)


@dataclass(frozen=True)
class Detail:
    """More of one proposed point.

    Attributes:
        evidence: One line for each policy that named it: what was compared with what.
        pulls: The queries it helps most and harms most, most helped first.
        tokens: Where in its text its influence lies, if that is known.
    """

    sample: Sample
    evidence: Sequence[str] = ()
    pulls: Sequence[Pull] = ()
    tokens: Tokens | None = None


@dataclass(frozen=True)
class Query:
    """A query as it is shown beside a point."""

    label: str
    sample: Sample


@dataclass(frozen=True)
class SuspiciousQuery:
    """A query that may be wrong itself.

    Attributes:
        loss: In nats, at the model that was scored.
        harmed_by: Proposed points that have it among the queries they harm most.
    """

    query_id: str
    label: str
    predicted: str
    loss: float
    harmed_by: int
    sample: Sample
