"""MLflow's webhook: a tag set on a model version wakes the watcher, which then looks for itself.

What the message says is not believed: it is no decision, only the news that there may be one. A message without a valid
signature is refused, so is one that is old or that was received before.

    X-MLflow-Signature: v1,base64(HMAC-SHA256(secret, "{delivery id}.{timestamp}.{body}"))
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from flows.errors import BadInput

SECRET = "TAMIS_WEBHOOK_SECRET"
"""Names the secret that the webhook was registered with."""
SECONDS = 300
"""A message that is older, or from the future by as much, is refused."""
LARGEST = 2**20
DIGITS = len(str(LARGEST))  # int() of a long text is slow, or refused
PATIENCE = 10.0
"""Seconds of silence after which whoever asks is left: a thread waits for each."""


class Gate:
    """Which messages are from MLflow, and new.

    Args:
        secret: Of the webhook.
        clock: Seconds since 1970.
    """

    def __init__(self, secret: str, clock: Callable[[], float] = time.time) -> None:
        self._secret, self._clock = secret.encode(), clock
        self._known: dict[str, float] = {}
        self._lock = threading.Lock()

    def admits(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether a message is signed with the secret, recent, and seen for the first time."""
        named = {name.lower(): value for name, value in headers.items()}  # as proxies may write them
        delivery, stamp = named.get("x-mlflow-delivery-id", ""), named.get("x-mlflow-timestamp", "")
        version, _, given = named.get("x-mlflow-signature", "").partition(",")
        if version != "v1" or not delivery or not (stamp.isascii() and stamp.isdigit()):
            return False
        mac = hmac.new(self._secret, f"{delivery}.{stamp}.".encode() + body, hashlib.sha256).digest()
        if not hmac.compare_digest(given.encode(), base64.b64encode(mac)):
            return False
        return abs(self._clock() - int(stamp)) <= SECONDS and self._is_new(delivery)

    def _is_new(self, delivery: str) -> bool:
        now = self._clock()
        with self._lock:
            self._known = {known: when for known, when in self._known.items() if now - when <= 2 * SECONDS}
            fresh = delivery not in self._known
            self._known.setdefault(delivery, now)
        return fresh


@contextmanager
def receiver(host: str, port: int, gate: Gate, wake: Callable[[], None]) -> Iterator[int]:
    """Receive webhooks while the context is open; yields the port.

    Args:
        host: Where MLflow's server reaches this machine.
        port: 0 takes a free one.
        gate: Which messages count.
        wake: Called for each that does.

    Raises:
        BadInput: Nobody can listen there.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit() and len(length) <= DIGITS) or int(length) > LARGEST:
                self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                return
            admitted = gate.admits(dict(self.headers.items()), self.rfile.read(int(length)))
            self._answer(HTTPStatus.NO_CONTENT if admitted else HTTPStatus.UNAUTHORIZED)
            if admitted:
                wake()

        def _answer(self, status: HTTPStatus) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing of who asks: the service's log is for its own words."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except (OSError, UnicodeError) as error:  # taken, privileged, or of another machine
        raise BadInput(f"--webhooks {host}:{port}: {error}; give an address of this machine and a free port") from error
    thread = threading.Thread(target=server.serve_forever, name="webhooks", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
