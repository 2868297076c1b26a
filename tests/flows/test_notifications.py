"""People are told through Prefect's own blocks: Slack's webhook, and any of those that Apprise knows."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("prefect_server")


class Post(BaseHTTPRequestHandler):
    """A server that people are told through."""

    status = 200
    told: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def post() -> Iterator[tuple[int, type[Post]]]:
    handler = type("Handler", (Post,), {"told": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, handler
    server.shutdown()
    server.server_close()


def save_block(name: str, url: str) -> str:
    """A block of Slack's type, as a team makes it; Apprise, which it is made of, knows addresses by their scheme."""
    from prefect.blocks.notifications import SlackWebhook

    SlackWebhook(url=url).save(name, overwrite=True)
    return f"slack-webhook/{name}"


def test_a_block_of_slacks_type_tells_people(post: tuple[int, type[Post]]) -> None:
    from flows.mirror import notify

    port, handler = post
    block = save_block("told", f"json://127.0.0.1:{port}")
    assert notify(block, "digits, cycle 4: promoted", "The whole story.", return_state=True).is_completed()
    [told] = handler.told
    assert (told["title"], told["message"]) == ("digits, cycle 4: promoted", "The whole story.")


def test_what_cannot_be_told_is_a_failed_task(post: tuple[int, type[Post]], monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.mirror import notify

    port, handler = post
    handler.status = 500
    block = save_block("refused", f"json://127.0.0.1:{port}")
    state = notify.with_options(retries=0)(block, "digits, cycle 4: promoted", "The whole story.", return_state=True)
    assert state.is_failed()


def test_a_mail_arrives() -> None:
    from flows.mirror import notify

    lines: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=_receive_mail, args=(server, lines), daemon=True).start()
        url = f"mailto://127.0.0.1:{port}?from=tamis@example.com&to=ada@example.com&mode=insecure"
        state = notify(save_block("mail", url), "digits, cycle 4: promoted", "The whole story.", return_state=True)
    assert state.is_completed()
    assert "Subject: digits, cycle 4: promoted" in lines
    assert any("The whole story." in line for line in lines)


def _receive_mail(server: socket.socket, lines: list[str]) -> None:
    """Take one mail by SMTP."""
    connection, _ = server.accept()
    with connection, connection.makefile("rw", newline="\r\n", encoding="utf-8") as talk:

        def say(line: str) -> None:
            talk.write(line + "\n")
            talk.flush()

        say("220 here")
        for line in talk:
            command = line.strip().upper()
            if command == "DATA":
                say("354 go on")
                while (given := talk.readline().rstrip("\r\n")) != ".":
                    lines.append(given)
            say("221 bye" if command == "QUIT" else "250 fine")
