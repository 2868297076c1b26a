"""Two nodes, each a network namespace of its own, with a veth between them: one machine's cycle, and a cut cable."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import TAMIS, Bench, Command, ledger, proposal_hashes

ADDRESSES = ("10.213.0.1", "10.213.0.2")
TORCHRUN = f'{{ kind = "torchrun", nnodes = 2, rdzv_endpoint = "{ADDRESSES[0]}:29411" }}'
DEEPSPEED = '{ kind = "deepspeed", hostfile = "hosts", port = 29412 }'


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def namespaces(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    names = (f"tamis{os.getpid()}a", f"tamis{os.getpid()}b")
    try:
        for name in names:
            ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"NOT TESTED: many nodes need iproute2 and the right to make network namespaces: {error}")
    try:
        ip("link", "add", "tamis0", "netns", names[0], "type", "veth", "peer", "name", "tamis0", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "tamis0")
            for link in ("lo", "tamis0"):
                ip("-n", name, "link", "set", link, "up")
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "tamis0")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def inside(name: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", name)


def join(bench: Bench, name: str) -> Command:
    line = [*inside(name), str(TAMIS), "node", str(bench.file), "--rank", "1"]
    return Command(bench, line, name="second")


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("one-machine"))
    assert bench.run().code == 0
    return bench


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, DEEPSPEED], ids=["torchrun", "deepspeed"])
def test_two_nodes_end_in_the_ledger_of_one_machine(
    namespaces: tuple[str, str], one_machine: Bench, tmp_path: Path, launcher: str
) -> None:
    (tmp_path / "hosts").write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    bench = Bench(tmp_path, launcher=launcher, prefix=inside(namespaces[0]))
    second = join(bench, namespaces[1])
    ended = bench.run()
    assert ended.code == 0, ended.err
    left = second.wait()
    assert left.code == 0, left.err
    assert "tamis: " not in left.err
    assert bench.left() == []
    assert proposal_hashes(bench.workspace) == proposal_hashes(one_machine.workspace)
    assert ledger(bench.workspace) == ledger(one_machine.workspace)


@pytest.mark.slow
def test_a_node_cut_off_in_the_training_ends_the_attempt_with_one_line_and_the_cycle_goes_on(
    namespaces: tuple[str, str], tmp_path: Path
) -> None:
    bench = Bench(tmp_path, launcher=TORCHRUN, prefix=inside(namespaces[0]), heartbeat=45.0, epochs=100)
    second, command = join(bench, namespaces[1]), bench.start()
    beat = bench.cycle / "logs" / "train-rank1.beat"
    command.until(lambda: beat.exists() and '"training' in beat.read_text(), "both nodes train")
    ip("-n", namespaces[1], "link", "set", "tamis0", "down")
    ended = command.wait()
    assert ended.code == 1, ended.err
    [line] = ended.lines
    assert line.startswith("tamis: train: rank "), line
    assert "showed no progress for 45 s; its log is " in line
    assert second.process.poll() is None, "the node waits for the command to come back"
    ip("-n", namespaces[1], "link", "set", "tamis0", "up")
    ended = bench.run()
    assert ended.code == 0, ended.err
    left = second.wait()
    assert left.code == 0, left.err
    assert left.err.count("train: joined") > 1
    assert bench.left() == []
    states = [event[1] for event in ledger(bench.workspace)["events"]]
    assert states.count("trained") == 1
