"""A run's pages in MLflow's UI, as a reviewer uses them: reads the report, writes a tag with keyboard and mouse."""

from __future__ import annotations

import time
from pathlib import Path

from tests.storage.browser import Browser, Page

EDIT, DIALOG = 'button[aria-label="Edit tags"]', '[role="dialog"]'
KEY, VALUE = f"{DIALOG} input[role=combobox]", f"{DIALOG} input[name=value]"
ADD = f'{DIALOG} button[aria-label="Add tag"]'
PATIENCE, PAUSE = 300.0, 0.2


def report_frame(page: Page) -> Page:
    """The frame in which the page of an HTML artifact shows it, when a report has filled itself there."""
    _wait(page, "document.querySelector('iframe')?.src.startsWith('blob:')", "the viewer's frame")
    deadline = time.monotonic() + PATIENCE
    while not (frames := page.frames()):
        assert time.monotonic() < deadline, "the viewer's frame has no process of its own: it is not sandboxed"
        page.evaluate("0")  # an answer brings the events before it
        time.sleep(PAUSE)
    (frame,) = frames
    _wait(frame, "document.querySelector('#status')?.textContent", "the report to fill itself")
    return frame


def _wait(page: Page, condition: str, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < deadline, f"waited in vain for {what}: {page.texts('body')}"
        time.sleep(PAUSE)


class RunPage:
    """The page of one run on a server of MLflow."""

    def __init__(self, browser: Browser, server: str, experiment: str, run: str) -> None:
        self.page: Page = browser.open(f"{server}/#/experiments/{experiment}/runs/{run}", height=1200)
        self._wait(f"document.querySelector('{EDIT}')", "the tags of the run")

    def set_tag(self, key: str, value: str, shot: Path | None = None) -> None:
        """Write a tag as a person does: the pencil, a key, a value, plus, save."""
        self.page.click(EDIT)
        self._wait(f"document.querySelector('{KEY}')", "the form of tags")
        self.page.type(KEY, key)
        self._wait(f"document.querySelector('{KEY}').value == '{key}'", "the key")
        self.page.press("Enter")
        self.page.evaluate(f"document.querySelector('{VALUE}').select()")  # a key that is there brings its old value
        self.page.type(VALUE, value)
        self._wait(f"!document.querySelector('{ADD}').disabled", "the button that adds the tag")
        self.page.click(ADD)
        save = f"[...document.querySelectorAll('{DIALOG} button')].find(b => b.innerText.trim() == 'Save tags')"
        self._wait(f"({save})?.disabled === false", "the button that saves the tags")
        if shot is not None:
            self.page.screenshot(shot)
        self.page.evaluate(f"({save}).id = 'save-tags'")
        self.page.click("#save-tags")
        self._wait(f"!document.querySelector('{DIALOG}')", "the form to close")

    def unfold(self) -> None:
        """Show the whole description, of which the page shows the first lines."""
        more = "[...document.querySelectorAll('button')].find(b => b.innerText.trim() == 'Show more')"
        self._wait(more, "the rest of the description")
        self.page.evaluate(f"({more}).id = 'show-more'")
        self.page.click("#show-more")
        self._wait(f"!({more})", "the description to unfold")

    def says(self, text: str) -> None:
        """Wait until the page shows a text."""
        self._wait(f"document.body.innerText.includes({text!r})", f"{text!r} on the page")

    def _wait(self, condition: str, what: str) -> None:
        _wait(self.page, condition, what)
