"""A run's page in MLflow's UI, as a reviewer uses it: reads what it says, writes a tag with keyboard and mouse."""

from __future__ import annotations

import time
from pathlib import Path

from tests.storage.browser import Browser, Page

EDIT, DIALOG = 'button[aria-label="Edit tags"]', '[role="dialog"]'
KEY, VALUE = f"{DIALOG} input[role=combobox]", f"{DIALOG} input[name=value]"
ADD = f'{DIALOG} button[aria-label="Add tag"]'
PATIENCE, PAUSE = 300.0, 0.2


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
        deadline = time.monotonic() + PATIENCE
        while not self.page.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"waited in vain for {what}: {self.page.texts('body')}"
            time.sleep(PAUSE)
