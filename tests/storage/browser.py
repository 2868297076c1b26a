"""A headless Chromium, driven over a pipe by its own protocol: what a reader of a report would see and do."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
KEYS = {"Tab": 9, "Enter": 13, " ": 32}


def installed() -> str | None:
    """The browser of this machine, if it has one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start the browser with a profile of its own; it reaches this machine and can resolve no name."""
    command = [
        str(installed()),
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
        *("--disable-background-networking", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
        *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={folder}"),
    ]
    (commands, ours), (theirs, answers) = os.pipe(), os.pipe()
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash", *command],
        pass_fds=(commands, answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands)
    os.close(answers)
    with open(ours, "wb", buffering=0) as to, open(theirs, "rb") as back:
        try:
            yield Browser(to, back)
        finally:
            process.kill()
            process.wait()


class Browser:
    """The protocol: commands with an answer each, and events, which are kept."""

    def __init__(self, to: Any, back: Any) -> None:
        self._to, self._back, self._count = to, back, 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, /, **parameters: Any) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        self._to.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def wait_for(self, method: str) -> None:
        """Read until an event has come."""
        while not any(event["method"] == method for event in self.events):
            self._next()

    def _next(self) -> dict[str, Any]:
        raw = bytearray()
        while (byte := self._back.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser has ended")
            raw += byte
        message: dict[str, Any] = json.loads(raw)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, url: str, width: int = 1280, height: int = 900, scheme: str = "light") -> Page:
        """Load a page and wait until it is there."""
        self.events.clear()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable", page.session)
        self.call("Target.setAutoAttach", page.session, autoAttach=True, waitForDebuggerOnStart=False, flatten=True)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", page.session, **size)
        self.call(
            "Emulation.setEmulatedMedia",
            page.session,
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.call("Page.navigate", page.session, url=url)
        self.wait_for("Page.loadEventFired")
        return page


class Page:
    """One open page; `session` is that of its outermost frame."""

    def __init__(self, owner: Browser, session: str) -> None:
        self._owner, self.session = owner, session

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        answer = self._owner.call(
            "Runtime.evaluate", self.session, expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """The text of every element that a selector finds."""
        found: list[str] = self.evaluate(f"[...document.querySelectorAll({selector!r})].map(e => e.innerText.trim())")
        return found

    def click(self, selector: str) -> None:
        """Press the mouse on the first element that a selector finds."""
        where = f"document.querySelector({selector!r})"
        self.evaluate(f"{where}.scrollIntoView({{block: 'center'}})")
        box = self.evaluate(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({where}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            place = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
            self._owner.call("Input.dispatchMouseEvent", self.session, type=kind, **place)

    def type(self, selector: str, text: str) -> None:
        """Put the focus on an element and write."""
        self.evaluate(f"document.querySelector({selector!r}).focus()")
        self._owner.call("Input.insertText", self.session, text=text)

    def press(self, key: str) -> None:
        """Press a key of `KEYS`."""
        code = {"key": key, "windowsVirtualKeyCode": KEYS[key], "text": "\r" if key == "Enter" else ""}
        for kind in ("keyDown", "keyUp"):
            self._owner.call("Input.dispatchKeyEvent", self.session, type=kind, **code)

    def choose(self, selector: str, label: str) -> None:
        """Choose an option by what it says."""
        self.evaluate(
            f"""(s => {{ s.value = [...s.options].find(o => o.text === {label!r}).value;
            s.dispatchEvent(new Event("input", {{bubbles: true}})); }})(document.querySelector({selector!r}))"""
        )

    def frames(self) -> list[Page]:
        """The frames that live in processes of their own."""
        attached = (e["params"] for e in self._owner.events if e["method"] == "Target.attachedToTarget")
        found = [Page(self._owner, one["sessionId"]) for one in attached if one["targetInfo"]["type"] == "iframe"]
        for frame in found:
            for domain in ("Runtime", "Network", "Log"):
                self._owner.call(f"{domain}.enable", frame.session)
        return found

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as a PNG."""
        shot = self._owner.call("Page.captureScreenshot", self.session, captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def requests(self) -> list[str]:
        """Addresses that this frame asked for, but for what is inside the page."""
        asked = [said["request"]["url"] for said in self._said("Network.requestWillBeSent")]
        return [url for url in asked if not url.startswith(("data:", "blob:"))]

    def complaints(self) -> list[Any]:
        """Errors and warnings of this frame's console, exceptions, refused resources."""
        return self._said("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")

    def _said(self, *methods: str) -> list[Any]:
        events = (event for event in self._owner.events if event.get("sessionId") == self.session)
        return [event["params"] for event in events if event["method"] in methods]
