"""Promise 1 with Prefect: kill -9 of the command alone, on the workload of the demo, and of the server alone."""

from pathlib import Path

import psutil
import pytest

from tests.faults.harness import Bench, ledger, proposal_hashes, servers, tracked

IN_TRAINING = "flows.workload:check_losses before 5"


def test_the_command_killed_under_prefect_leaves_no_rank_and_its_server_ends_with_the_next_run(tmp_path: Path) -> None:
    plain = Bench(tmp_path / "undisturbed", workload="digits")
    assert plain.run(arguments=("--dry-run",)).code == 0

    bench = Bench(tmp_path / "killed", workload="digits", orchestrator="prefect")
    command = bench.start(f"rank 1 {IN_TRAINING} hold")
    logs = bench.cycle / "logs"
    command.until(lambda: all((logs / f"train-rank{rank}.beat").exists() for rank in (0, 1)), "both ranks train")
    [server] = servers(command)
    command.process.kill()
    assert command.wait().code == -9
    assert [process.split()[0] for process in bench.left()] == [str(server.pid)], "only the server can be left"
    assert server.is_running(), "or this test shows nothing"

    ended = bench.run()
    assert ended.code == 0, ended.err
    assert ended.lines == []
    assert not psutil.pid_exists(server.pid) or not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    assert bench.left() == []
    assert proposal_hashes(bench.workspace) == proposal_hashes(plain.workspace)
    assert ledger(bench.workspace)["events"][-1][1] in ("promoted", "rolled_back")
    assert tracked(bench.workspace)["champion"] == {"champion": 1}


def test_a_server_of_prefect_that_is_killed_is_one_line_and_the_same_command_ends_the_cycle(tmp_path: Path) -> None:
    bench = Bench(tmp_path, orchestrator="prefect")
    command = bench.start()
    command.until((bench.cycle / "logs" / "train-rank0.beat").exists, "the training to begin")
    [server] = servers(command)
    server.kill()
    ended = command.wait()
    assert ended.code == 1
    [line] = ended.lines
    assert line.startswith("tamis: Prefect's server does not answer")
    assert line.endswith("; the same command continues")
    assert bench.left() == []
    again = bench.run()
    assert (again.code, again.lines) == (0, [])


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    ended = Bench(tmp_path, orchestrator="prefect").run()
    assert ended.code == 1
    [line] = ended.lines
    assert line.startswith("tamis: Prefect's server does not answer (Failed to reach API at http://127.0.0.1:9/api/)")
