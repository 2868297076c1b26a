"""A webhook of MLflow's wakes the watcher if it is signed, recent and new; nothing else does."""

import base64
import hashlib
import hmac
import socket
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest

from flows.errors import BadInput
from flows.webhooks import LARGEST, SECONDS, Gate, receiver

SECRET, NOW = "a secret of 32 letters or digits", 1_800_000_000
BODY = b'{"entity": "model_version_tag", "action": "set"}'


def signed(
    delivery: str = "one", stamp: str = str(NOW), body: bytes = BODY, secret: str = SECRET, version: str = "v1"
) -> dict[str, str]:
    mac = hmac.new(secret.encode(), f"{delivery}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "X-MLflow-Delivery-Id": delivery,
        "X-MLflow-Timestamp": stamp,
        "X-MLflow-Signature": f"{version},{base64.b64encode(mac).decode()}",
    }


def gate() -> Gate:
    return Gate(SECRET, clock=lambda: float(NOW))


@pytest.mark.parametrize("age", [0, SECONDS, -SECONDS])
def test_what_is_signed_recent_and_new_is_admitted(age: int) -> None:
    assert gate().admits(signed(stamp=str(NOW - age)), BODY)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        signed(secret="another"),
        signed(body=BODY + b" "),
        signed(version="v2"),
        signed() | {"X-MLflow-Delivery-Id": "two"},
        signed() | {"X-MLflow-Timestamp": str(NOW - 1)},
        signed() | {"X-MLflow-Signature": "v1,"},
        signed() | {"X-MLflow-Signature": "v1,\u00e9"},
        signed(stamp=str(NOW - SECONDS - 1)),
        signed(stamp=str(NOW + SECONDS + 1)),
        signed(stamp="soon"),
        signed(stamp="\u0661"),
        signed(delivery=""),
    ],
)
def test_what_is_not_signed_or_not_recent_is_refused(headers: dict[str, str]) -> None:
    assert not gate().admits(headers, BODY)


def test_a_message_is_admitted_once_for_as_long_as_it_is_recent() -> None:
    now = [float(NOW)]
    kept = Gate(SECRET, clock=lambda: now[0])
    early = signed(stamp=str(NOW + SECONDS))  # of a clock that is ahead: recent for twice as long
    assert kept.admits(early, BODY)
    for later in (0, SECONDS, 2 * SECONDS):
        now[0] = NOW + later
        assert not kept.admits(early, BODY)
    assert kept.admits(signed(delivery="two", stamp=str(NOW + 2 * SECONDS)), BODY)


def test_over_http_a_good_message_wakes_and_a_bad_one_or_a_replay_does_not() -> None:
    woken: list[Any] = []
    with receiver("127.0.0.1", 0, gate(), lambda: woken.append(True)) as port:
        url = f"http://127.0.0.1:{port}/"
        assert httpx.post(url, content=BODY, headers=signed()).status_code == 204
        assert httpx.post(url, content=BODY, headers=signed()).status_code == 401
        assert httpx.post(url, content=BODY).status_code == 401
        assert (
            httpx.post(url, content=BODY, headers={k.lower(): v for k, v in signed("two").items()}).status_code == 204
        )
        for length in (str(LARGEST + 1), "9" * 5000, "\u00b2", "-1"):
            connection = HTTPConnection("127.0.0.1", port)
            connection.putrequest("POST", "/")
            connection.putheader("Content-Length", length)
            connection.endheaders()
            assert connection.getresponse().status == 413
            connection.close()
        assert httpx.get(url).status_code == 501
    assert woken == [True, True]
    with pytest.raises(httpx.ConnectError):
        httpx.post(url, content=BODY)


def test_whoever_connects_and_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.webhooks.PATIENCE", 0.05)
    said = (b"", b"POST / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf")
    with receiver("127.0.0.1", 0, gate(), lambda: None) as port:
        for begun in said:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as caller:
                caller.sendall(begun)
                assert caller.recv(1) == b"", "closed, and nothing answered"


@pytest.mark.parametrize("host", ["127.0.0.1", "198.51.100.1", "no such host"])
def test_a_place_where_nobody_can_listen_is_refused_in_one_line(host: str) -> None:
    with (
        receiver("127.0.0.1", 0, gate(), lambda: None) as taken,
        pytest.raises(BadInput, match="give an address of this machine and a free port"),
        receiver(host, taken, gate(), lambda: None),
    ):
        pass
