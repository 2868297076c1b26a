"""`make storm`: every server of a service killed in every stage of a cycle; each cycle ends as an undisturbed one.

    python -m tests.faults.server_storm --rounds 1 --seed 7

A round takes one cycle for each victim: PostgreSQL, Prefect, MLflow, `tamis serve`. Each time that the cycle has come
a stage further, and a while later that is drawn, the victim is killed with SIGKILL and started again, as the machine's
supervisor would do. A run that fails on the way must say so in a line, and the next run goes on with the cycle. In the
end ledger, proposal hash, MLflow and weights are those of a workspace that was left alone.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.harness import Bench, failures, wait_for
from tests.faults.storm import outcome
from tests.services import Service
from tests.stack import Served, Servers, address, ended, servers, serving

STAGES = ("train", "score", "propose", "preview", "retrain", "judge")
VICTIMS = ("postgres", "prefect", "mlflow", "serve")
GIVEN_UP = "is not begun again"  # said by the service where all of a cycle's last runs were killed
LONGEST = dict.fromkeys(STAGES, 3.0) | {"retrain": 0.3, "judge": 0.0}
"""Seconds between the end of a stage and the blow, at most: what follows the last two is over at once."""
SETTINGS = '[service]\npoll_seconds = 1.0\n[servers]\nmlflow = "{mlflow}"\n'


@dataclass
class Rig:
    """The servers, and the workspaces that were run on them."""

    folder: Path
    servers: Servers
    draw: random.Random
    say: Callable[[str], None]
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    asked: int = 0  # how often the service of this cycle has given up, as far as it was answered

    def cycle(self, name: str, blows: Sequence[tuple[str, str]] = ()) -> Bench:
        """Run a cycle to its end; each blow names a stage, and which victim is killed after it."""
        bench = Bench(self.folder / name, orchestrator="prefect", attempts=2)
        bench.file.write_text(
            f'dataset = "{name}"\n{bench.file.read_text()}{SETTINGS.format(mlflow=address(self.servers.mlflow))}'
        )
        served = Served([bench.file], self.servers.prefect)
        victims = {**vars(self.servers), "serve": served.service}
        self.asked = 0
        with serving(served):
            served.begin(bench.file)
            for stage, victim in blows:
                self._await(served, bench, partial(_came_to, bench, stage))
                time.sleep(self.draw.uniform(0, LONGEST[stage]))
                if ended(bench.file, 1):
                    break
                strike(victims[victim])
                self.kills[victim, stage] += 1
                self.say(f"{name}: {victim} killed after {stage}")
            self._await(served, bench, partial(ended, bench.file, 1))
            served.until(lambda: not served.under_way(bench.file), "the run to end")
        for _, detail in failures(bench.workspace):
            self.say(f"{name}: failed: {detail['reason']}")
        assert served.left() == []
        return bench

    def outcome(self, bench: Bench) -> dict[str, Any]:
        """What a cycle has come to: ledger, proposals, MLflow and weights."""
        return outcome(bench, address(self.servers.mlflow), bench.folder.name)

    def _await(self, served: Served, bench: Bench, there: Callable[[], bool]) -> None:
        """Wait for something; what has failed, or was killed so often that the service asks, is run again."""

        def happened() -> bool:
            if there():
                return True
            runs, given_up = served.runs(bench.file), served.log.count(GIVEN_UP)
            failed = bool(runs) and runs[-1]["state_type"] == "FAILED"
            if not served.under_way(bench.file) and (failed or given_up > self.asked):
                self.say(f"{bench.folder.name}: begun by hand: {runs[-1]['state']['message']}")
                self.asked = given_up
                served.begin(bench.file, cycle=1)
            return False

        served.until(happened, "the cycle to come further")


def strike(victim: Service) -> None:
    """Kill a server, or the service's own process alone, and start it again until it stays, as a supervisor does."""
    if victim.name == "serve":
        assert victim.process is not None
        victim.process.kill()
        victim.process.wait()
    else:
        victim.kill()

    def started() -> bool:
        try:
            victim.start()
        except RuntimeError:  # what the dead one has started holds its place for a moment
            return False
        return True

    wait_for(started, f"{victim.name} to start again")


def _came_to(bench: Bench, stage: str) -> bool:
    return ended(bench.file, 1) or any(bench.cycle.glob(f"stages/{stage}*.json"))


@contextmanager
def rig(folder: Path, seed: int, say: Callable[[str], None]) -> Iterator[Rig]:
    """The servers, from their start to their end."""
    with servers(folder) as started:
        yield Rig(folder, started, random.Random(seed), say)


def storm(rig: Rig, rounds: int) -> None:
    """Run cycles in which every victim is killed in every stage.

    Raises:
        AssertionError: A cycle ended otherwise than an undisturbed one, or something of it was left.
    """
    expected = rig.outcome(rig.cycle("calm"))
    for number in range(rounds):
        for victim in VICTIMS:
            bench = rig.cycle(f"{victim}-{number}", [(stage, victim) for stage in STAGES])
            assert rig.outcome(bench) == expected, f"{bench.folder} ended otherwise than the undisturbed one"


def main() -> None:
    """Storm, and print what was struck."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        rig(Path(folder), asked.seed, lambda line: print(line, flush=True)) as servers,
    ):
        storm(servers, asked.rounds)
        for (victim, stage), count in sorted(servers.kills.items()):
            print(f"{count:4d}  after {stage}: {victim}")
        print(f"{servers.kills.total()} kills, each cycle ended as an undisturbed one")


if __name__ == "__main__":
    main()
