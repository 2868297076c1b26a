"""However a cycle ends, it says one line and leaves no rank, agent, server or socket; the next run continues it."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import TAMIS, Bench, Command, failure_tag, failures, ledger, popen_python, servers, text

WORKLOAD = '''
import os
from pathlib import Path
from flows.workloads.tiny import Tiny

class Faulty(Tiny):
    """Tiny, whose loss breaks on rank 1 after some steps in the way that the file `fault` names."""

    calls = 0

    def loss(self, model, batch):
        losses = super().loss(model, batch)
        if model.training and os.environ.get("RANK") == "1":
            self.calls += 1
            fault = (Path(__file__).parent / "fault").read_text()
            if self.calls > 5 and fault == "raise":
                raise RuntimeError("the loss broke")
            if self.calls > 5 and fault == "nan":
                losses = losses * float("nan")
        return losses
'''
IN_TRAINING = "flows.workload:check_losses before 5"  # called once a step


def faulty(folder: Path, **settings: Any) -> Bench:
    (folder / "faulty.py").write_text(WORKLOAD)
    (folder / "fault").write_text("none")
    return Bench(folder, workload="faulty.py:Faulty", **settings)


def in_training(command: Command, bench: Bench) -> None:
    """Both ranks are at work, and the launcher watches them."""
    logs = bench.cycle / "logs"
    command.until(lambda: all((logs / f"train-rank{rank}.beat").exists() for rank in (0, 1)), "both ranks train")


def test_a_loss_that_raises_a_nan_a_killed_and_a_stopped_rank_each_give_one_line_and_the_cycle_goes_on(
    tmp_path: Path,
) -> None:
    bench = faulty(tmp_path)
    log = bench.cycle / "logs" / "train-rank1.log"

    (tmp_path / "fault").write_text("raise")
    ended = bench.run()
    assert ended.code == 1, ended.err
    assert ended.lines == [f"tamis: train: rank 1: RuntimeError: the loss broke; its log is {log}"]
    assert "Traceback" in text(log), "the log holds what the line leaves out"
    assert bench.left() == []

    (tmp_path / "fault").write_text("nan")
    ended = bench.run()
    assert ended.code == 2, ended.err
    [line] = ended.lines
    assert line.startswith("tamis: the loss of point ")
    assert "is not finite" in line
    assert bench.left() == []

    (tmp_path / "fault").write_text("none")
    ended = bench.run(f"rank 1 {IN_TRAINING} kill_self")
    assert ended.code == 1, ended.err
    assert ended.lines == [f"tamis: train: rank 1: was killed (SIGKILL; out of memory?); its log is {log}"]
    assert bench.left() == []

    bench.configure(heartbeat=30.0)
    ended = bench.run(f"rank 1 {IN_TRAINING} stop_self")
    assert ended.code == 1, ended.err
    assert ended.lines == [f"tamis: train: rank 1 is stopped and showed no progress for 30 s; its log is {log}"]
    assert bench.left() == []

    bench.configure(heartbeat=300.0)
    ended = bench.run()
    assert ended.code == 0, ended.err
    states = [event[1] for event in ledger(bench.workspace)["events"]]
    assert states.count("trained") == states.count("opened") == 1
    assert bench.left() == []


@pytest.mark.parametrize(
    ("program", "trap"),
    [("train", IN_TRAINING), ("score", "flows.ranks.attribution:Attribution.score_chunk before 2")],
)
def test_a_rank_that_is_killed_once_costs_an_attempt_and_not_the_cycle(tmp_path: Path, program: str, trap: str) -> None:
    bench = Bench(tmp_path, attempts=2)
    ended = bench.run(f"rank 1 {trap} kill_first")
    assert ended.code == 0, ended.err
    assert bench.left() == []
    first, second = (bench.cycle / "logs" / name / f"{program}-rank1.log" for name in (".", "attempt-2"))
    assert first.exists()
    assert second.exists(), "what the first attempt said is kept"
    [(cycle, detail)] = failures(bench.workspace)
    reason = f"{program}: rank 1: was killed (SIGKILL; out of memory?); its log is {first.resolve()}"
    assert (cycle, detail) == (1, {"attempt": 1, "attempts": 2, "reason": reason})
    assert ledger(bench.workspace)["events"][-1][1] == "promoted"


def test_attempts_are_bounded_and_the_last_failure_is_told_everywhere(tmp_path: Path) -> None:
    bench = faulty(tmp_path, attempts=2)
    (tmp_path / "fault").write_text("raise")
    ended = bench.run()
    assert ended.code == 1
    log = bench.cycle / "logs" / "attempt-2" / "train-rank1.log"
    reason = f"train: rank 1: RuntimeError: the loss broke; its log is {log}"
    assert ended.lines == [f"tamis: {reason}"]
    assert [detail.get("attempt") for _, detail in failures(bench.workspace)] == [1, None]
    assert failure_tag(bench.workspace) == f"StageFailed: {reason}"


def test_kill_minus_9_of_the_launcher_or_the_agent_alone_takes_the_ranks_along(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    command = bench.start(f"rank 0 {IN_TRAINING} stop_self", f"rank 1 {IN_TRAINING} hold")
    in_training(command, bench)
    assert len(command.tree()) >= 3, "an agent and two ranks"
    command.process.kill()
    assert command.wait().code == -9
    assert bench.left() == [], "neither a stopped nor a waiting rank outlives the launcher"

    command = bench.start()
    command.until(lambda: len(command.tree()) >= 3, "the ranks exist, but have not asked to die with their parent")
    [agent] = command.process.children()
    agent.kill()
    ended = command.wait()
    assert ended.code == 1, ended.err
    [line] = ended.lines
    assert line.startswith("tamis: train: ended with code -9; its logs are ")
    assert bench.left() == []


def test_with_prefect_ctrl_c_and_failures_are_one_line_each_and_leave_nothing(tmp_path: Path) -> None:
    bench = faulty(tmp_path, orchestrator="prefect")
    command = bench.start(f"rank 1 {IN_TRAINING} hold")
    in_training(command, bench)
    assert len(servers(command)) == 1
    command.press_ctrl_c()
    ended = command.wait()
    assert ended.code == 130, ended.err
    assert ended.lines == ["tamis: interrupted; the same command continues"]
    assert bench.left(patience=90.0) == []  # its server takes its time on a busy machine
    for fault, code, start in (("raise", 1, "tamis: train: rank 1: RuntimeError"), ("nan", 2, "tamis: the loss of ")):
        (tmp_path / "fault").write_text(fault)
        ended = bench.run()
        assert ended.code == code, ended.err
        assert [line[: len(start)] for line in ended.lines] == [start], ended.err
        assert bench.left(patience=90.0) == []


def test_a_second_run_ctrl_c_and_a_locked_ledger_give_one_line_each_that_names_the_other(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    command = bench.start(f"rank 1 {IN_TRAINING} hold")
    in_training(command, bench)
    second = Command(bench, [str(TAMIS), "run", str(bench.file)], name="second").wait()
    assert second.code == 2
    assert second.lines == [
        f"tamis: workspace {bench.workspace}: process {command.process.pid} "
        f"(tamis run {bench.file}) works in it; wait or end it"
    ]
    command.press_ctrl_c()
    ended = command.wait()
    assert ended.code == 130, ended.err
    assert ended.lines == ["tamis: interrupted; the same command continues"]
    assert bench.left() == []

    held = "import sys, duckdb; con = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.readline()"
    holder = popen_python(held, str(bench.workspace / "ledger.duckdb"))
    ended = bench.run("flows.running:load before 1 lose_patience")
    holder.communicate("\n")
    assert ended.code == 2
    [line] = ended.lines
    assert f"was held by process {holder.pid} for more than 0.5 s" in line
    assert bench.left() == []


def test_a_full_disk_gives_one_line_and_the_cycle_goes_on_once_there_is_space(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for trap in (
        "flows.cycle:open_cycle before 1 fill_disk",
        "rank 0 storage.checkpoints:begin before 1 fill_disk",
        "flows.cycle:propose before 1 fill_disk",
        "flows.cycle:publish before 1 fill_disk",
    ):
        ended = bench.run(trap)
        assert ended.code in (1, 2), f"{trap}: {ended.err}"
        assert len(ended.lines) == 1, f"{trap}: {ended.err}"
        assert "free space" in ended.lines[0], f"{trap}: {ended.err}"
        assert bench.left() == []
    ended = bench.run()
    assert ended.code == 0, ended.err
