"""A report of made-up points, as many as are asked for, the same at every call."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
from PIL import Image

from storage.report import ReportData
from storage.report_parts import (
    Arm,
    Check,
    Confusion,
    Detail,
    Interval,
    Policy,
    Pull,
    Query,
    Sample,
    Slice,
    SuspiciousQuery,
    Tally,
    Tokens,
)

GROUPS = ("paper", "10 dpi", "9 dpi", None)
REASONS = ("harmful", "mislabeled", "harmful+mislabeled")
ARMS = (
    Arm("baseline", 1000, 640, 3, Interval(0.36, 0.28, 0.44), Interval(0.91, 0.89, 0.94)),
    Arm("challenger", 885, 640, 3, Interval(0.25, 0.16, 0.36), Interval(0.94, 0.91, 0.96)),
)


def example(
    count: int, detailed: int = 500, said: str = "a sample", strings: bool = False, grouped: bool = False
) -> ReportData:
    """A report.

    Args:
        count: Proposed points.
        detailed: Of them with a picture and details, at most.
        said: Stands wherever text of the user's data is shown.
        strings: Whether ids are texts.
        grouped: Whether points are of groups; then all but one in four.
    """
    points = proposed(count, said, strings, grouped)
    samples = [Sample(said, picture(number)) for number in range(20)]
    queries = {f"{said} {number}": Query(str(number % 10), samples[number]) for number in range(20)}
    names = list(queries)
    pulls = [Pull(names[place], 0.05 - 0.011 * place) for place in range(10)]
    evidence = ["harmful: harmful_q is 0.1954, threshold 0.2", said]
    tokens = Tokens([(said, -0.02), ("fine", 0.0101), ("and", 0.0)], 0.003)
    details = [
        Detail(samples[row % 20], evidence, pulls, tokens if row % 2 == 0 else None)
        for row in range(min(count, detailed))
    ]
    return ReportData(
        cycle=4,
        dataset=said,
        dataset_sha256="d" * 64,
        proposal="b" * 64,
        state="awaiting_review",
        decision=said,
        in_train=max(1000, 8 * count),
        points=points,
        details=details,
        queries=queries,
        policies=[Policy(said, said, "q = 0.2", count, count)],
        trust={said: said},
        changes={said: said},
        costs={said: said},
        facts={said: said},
        classes=[Tally(said, 100, 10, 2, 1), *(Tally(str(label), 100, label, 0, 0) for label in range(1, 10))],
        groups=[Tally(said, 500, 30, 0, 0)],
        slices=[
            Slice(said, said, 120, Interval(-1.2, -1.5, -0.9), 0.0004, True, 60, 0.5, 4.2),
            Slice("label", "3", 100, Interval(0.2, -0.1, 0.5), 1.0, False, 0, 0.0, 0.0),
        ],
        tested=14,
        confusion=Confusion.of({(said, "7"): 3, ("1", "7"): 2}),
        arms=[replace(ARMS[0], name=said, accuracy=None), *ARMS],
        checks=[Check(said, -0.02, said, True), Check("control", 0.2, "+0.3000 is not below 0", False)],
        suspicious=[SuspiciousQuery(said, "3", "5", 9.2, 12, samples[0])],
        commands=[f"tamis approve {'b' * 12} --by NAME"],
        tag=f"approve:{'b' * 12}",
        figures={said: picture(3)},
    )


def proposed(count: int, said: str = "a sample", strings: bool = False, grouped: bool = False) -> pa.Table:
    """Proposed points: four in five to remove, the others to relabel; the last has no numbers and its own reason."""
    draws = np.random.default_rng(0)
    integers = draws.permutation(8 * count)[:count]
    last = np.arange(count) == count - 1
    numbers = {
        name: pa.array(values, mask=last)
        for name, values in {
            "influence": -draws.exponential(0.01, count),
            "influence_se": draws.exponential(0.001, count),
            "self_influence": draws.lognormal(6, 1, count),
            "posterior": draws.uniform(0.5, 1, count),
        }.items()
    }
    reasons = [REASONS[place] for place in draws.integers(0, 3, count)]
    return pa.table(
        {
            "point_id": [f"{said} {number}" for number in integers] if strings else integers,
            "action": np.where(np.arange(count) % 5 == 4, "relabel", "remove"),
            "reason": [said if end else reason for end, reason in zip(last, reasons)],
            "group": pa.array([GROUPS[row % 4] if grouped else None for row in range(count)], pa.string()),
            "label": pa.array(draws.integers(0, 10, count), pa.int32()),
            "given": pa.nulls(count, pa.int32()),
            "suggested_label": pa.array(draws.integers(0, 10, count), pa.int32()),
            "score": draws.uniform(0, 0.2, count),
            "threshold": np.full(count, 0.2),
            **numbers,
        }
    )


def picture(number: int) -> bytes:
    """A small PNG."""
    grey = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(grey).resize((64, 64), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()
