"""How ranks are started on nodes, watched, and who is blamed for their silence."""

import base64
import json
import os
import socket
from pathlib import Path

import pytest

from flows.agents import Launch, _command
from flows.announcements import announced, announced_launch, announcement
from flows.config import load
from flows.errors import BadInput
from flows.heartbeats import Watch
from flows.nodes import join
from flows.sections.launching import Hosts, Torchrun
from tests.flows.helpers import tamis, write_toml


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def beat(path: Path, pid: int = 0, host: str = "") -> None:
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(json.dumps({"pid": pid or os.getpid(), "host": host or socket.gethostname()}))
    os.utime(path, ns=(before + 1, before + 1))


def test_a_rank_is_blamed_only_once_none_shows_progress_and_then_the_first_to_fall_silent(tmp_path: Path) -> None:
    clock = Clock()
    beats = [tmp_path / f"{rank}.beat" for rank in range(3)]
    watch = Watch(beats, patience=10.0, clock=clock)
    for second, ranks in ((1, (0, 1, 2)), (2, (0, 2)), (9, (0,))):
        clock.now = second
        for rank in ranks:
            beat(beats[rank])
        assert watch.silent() is None
    clock.now = 19
    assert watch.silent() is None, "rank 0 was heard 10 s ago, and rank 1 may wait for it"
    clock.now = 19.1
    silence = watch.silent()
    assert silence is not None
    assert (silence.rank, silence.why) == (1, "showed ")


def test_clocks_of_nodes_need_not_agree(tmp_path: Path) -> None:
    clock = Clock()
    watch = Watch([tmp_path / "0.beat"], patience=10.0, clock=clock)
    for second in range(0, 100, 9):
        clock.now = second
        beat(tmp_path / "0.beat")  # its file's time is that of 1970
        assert watch.silent() is None


def test_a_process_of_another_node_is_not_looked_up_here(tmp_path: Path) -> None:
    clock = Clock()
    watch = Watch([tmp_path / "0.beat"], patience=1.0, clock=clock)
    beat(tmp_path / "0.beat", pid=1, host="elsewhere")
    watch.silent()
    clock.now = 5
    silence = watch.silent()
    assert silence is not None
    assert silence.why == "showed "


def launch_of(folder: Path, launcher: Torchrun | Hosts, ranks: int) -> Launch:
    return Launch("train", folder / "plan.json", ranks, folder, 60.0, launcher, announcement(folder))


def test_every_node_runs_the_same_command_but_for_its_number(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, Torchrun(nnodes=2, rdzv_endpoint="first:29400"), 8)
    first, second = (_command(launch, node, "key") for node in (0, 1))
    assert [one for one, other in zip(first, second, strict=True) if one != other] == [
        str(tmp_path / "train-agent.error"),
        "0",
    ]
    assert first[first.index("--nproc-per-node") + 1] == "4"


def test_deepspeed_s_launcher_is_told_the_hosts_of_the_file_in_its_order(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# two machines\nb slots=1\n\na   slots=3  # the larger\n")
    command = _command(launch_of(tmp_path, Hosts(kind="deepspeed", hostfile=hosts), 4), 1, "key")
    [world] = [part.removeprefix("--world_info=") for part in command if part.startswith("--world_info=")]
    assert list(json.loads(base64.urlsafe_b64decode(world)).items()) == [("b", [0]), ("a", [0, 1, 2])]
    assert {"--master_addr=b", "--node_rank=1", "--module", "--no_local_rank"} <= set(command)


def _interrupted(launch: Launch, keys: list[str]) -> None:
    with announced(launch) as key:
        assert launch.announcement is not None
        said = announced_launch(launch.announcement)
        assert said is not None
        assert (said["key"], said["ranks"], said["program"]) == (key, 2, "train")
        keys.append(key)
        raise KeyboardInterrupt


def test_an_announcement_is_gone_however_its_launch_ends_and_its_key_is_new(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, Torchrun(nnodes=2, rdzv_endpoint="first:29400"), 2)
    keys: list[str] = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            _interrupted(launch, keys)
        assert announced_launch(announcement(tmp_path)) is None
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("launcher", "line"),
    [
        ({"nnodes": 2}, "nnodes = 2 needs rdzv_endpoint, HOST:PORT of the first node"),
        ({"rdzv_endpoint": "first:29400"}, "nnodes = 1 takes no rdzv_endpoint"),
        ({"nnodes": 2, "rdzv_endpoint": "first"}, "rdzv_endpoint = 'first': String should match pattern"),
        ({"nnodes": 2, "rdzv_endpoint": "first:29400"}, "training.ranks = 1 are no multiple of launch.launcher.nnodes"),
        ({"kind": "deepspeed", "hostfile": "none"}, "none: no such file"),
        ({"kind": "deepspeed", "hostfile": "twice"}, "give lines `HOST slots=RANKS`, each host once"),
        ({"kind": "deepspeed", "hostfile": "hosts"}, "training.ranks = 1: the slots of .*hosts are another number"),
        ({"kind": "slurm"}, "does not match any of the expected tags: 'torchrun', 'deepspeed'"),
    ],
)
def test_a_launcher_that_cannot_start_the_ranks_is_refused_with_a_line(
    tmp_path: Path, launcher: dict[str, object], line: str
) -> None:
    (tmp_path / "hosts").write_text("a slots=2\n")
    (tmp_path / "twice").write_text("a slots=2\na slots=2\n")
    with pytest.raises(BadInput, match=line):
        load(write_toml(tmp_path, "tiny", launch={"launcher": {"kind": "torchrun", **launcher}}))


def test_a_node_that_nobody_numbers_or_expects_is_refused_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NODE_RANK", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    file = write_toml(tmp_path, "tiny")
    ended = tamis("node", file)
    assert ended.returncode == 2
    assert ended.stderr.startswith("tamis: which node is this? give --rank, or NODE_RANK or JOB_COMPLETION_INDEX")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    with pytest.raises(BadInput, match=r"node 1 cannot join: launch\.launcher has 1 in all, the first is 0"):
        join(load(file), None, print)
