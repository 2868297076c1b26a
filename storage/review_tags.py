"""Where a person reviews in MLflow: tags of the cycle's run, and of the model version that its baseline is.

    tamis.proposal        the open proposal, in full
    tamis.review          `approve:` or `reject:` and at least 12 digits of it, given by a reviewer on either page
    tamis.review_refused  why that does not count
    tamis.approved_by     who has approved so far, where it takes two persons

A tag has no author and no history. It is a request: the ledger decides, and both pages then show what it decided.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from storage.reviews import OpenProposal
from storage.tracking import ModelVersion, Tracker

PROPOSAL, REVIEW, REFUSED, APPROVED = "tamis.proposal", "tamis.review", "tamis.review_refused", "tamis.approved_by"
WRITTEN = re.compile(r"(approve|reject):([0-9a-f]{12,64})")
SHOWN = 80


@dataclass(frozen=True)
class Request:
    """A decision that somebody asks for; `text` as it was written, `how` where."""

    decision: Literal["approve", "reject"]
    text: str
    how: str


@dataclass(frozen=True)
class Refusal:
    """Why what was written is no decision, in a line; `shown` if whoever wrote it was told."""

    line: str
    shown: bool


@dataclass(frozen=True)
class _Page:
    """The tags of a run or of a model version, as they were read."""

    name: str
    tags: Mapping[str, str]
    set_tag: Callable[[str, str], None]

    @property
    def review(self) -> str:
        return self.tags.get(REVIEW, "").strip()

    def show(self, key: str, value: str) -> None:
        if self.tags.get(key, "") != value:
            self.set_tag(key, value)


class ReviewTags:
    """The tags of one cycle's review.

    Args:
        tracker: The MLflow store.
        run: The cycle's run.
        model: Name of the registered model; a version of this run with the tag `tamis.proposal` is a page, too.
    """

    def __init__(self, tracker: Tracker, run: str, model: str) -> None:
        self._tracker, self._run, self._model = tracker, run, model

    def offer(self, proposal: str, version: ModelVersion | None = None) -> None:
        """Name the open proposal; what was written about another one is cleared.

        Args:
            proposal: Its full hash.
            version: Is a page of the review from now on.
        """
        for page in self._pages(version):
            if page.tags.get(PROPOSAL) != proposal:
                for key in (REVIEW, REFUSED, APPROVED):
                    page.show(key, "")
                page.show(PROPOSAL, proposal)

    def asked(self, opened: OpenProposal) -> Request | Refusal | None:
        """What the tags `tamis.review` ask for; None where there is none."""
        pages = self._pages()
        given = {page.name: page.review for page in pages if page.review}
        if not given:
            return None
        line = _refused(given, opened)
        if line:
            return Refusal(line, shown=all(page.tags.get(REFUSED) == line for page in pages))
        text = next(iter(given.values()))
        decision: Literal["approve", "reject"] = "approve" if text.lower().startswith("approve") else "reject"
        return Request(decision, text, f"MLflow tag {REVIEW} of the {' and of the '.join(given)}")

    def refuse(self, line: str) -> None:
        """Tell whoever wrote the tags why they are no decision; an empty line takes that back."""
        for page in self._pages():
            page.show(REFUSED, line)

    def approved_by(self, names: str) -> None:
        """Show who has approved so far."""
        for page in self._pages():
            page.show(APPROVED, names)

    def decided(self, decision: str, proposal: str) -> None:
        """Show what the ledger has recorded."""
        for page in self._pages():
            page.show(REVIEW, f"{decision}:{proposal[:12]}")
            page.show(REFUSED, "")

    def _pages(self, version: ModelVersion | None = None) -> list[_Page]:
        tracker, run, model = self._tracker, self._run, self._model
        pages = [_Page("run", tracker.tags(run), partial(tracker.set_tag, run))]
        for number, tags in sorted(tracker.version_tags(run, model).items()):
            if PROPOSAL in tags or (version is not None and number == version.version):
                pages.append(_Page(f"model version {number}", tags, partial(tracker.set_version_tag, model, number)))
        return pages


def _refused(given: Mapping[str, str], opened: OpenProposal) -> str:
    """Why what the pages say is no decision on the open proposal; empty where it is one."""
    expected = f"approve:{opened.short}"
    asked = set[tuple[str, str]]()
    for page, text in given.items():
        said = f"the tag {REVIEW} of the {page} is {text[:SHOWN]!r}"
        match = WRITTEN.fullmatch(text.lower())
        if match is None:
            return f"{said}; it must read {expected} or reject:{opened.short}"
        if not opened.record.hash.startswith(match[2]):
            return f"{said}, which names another proposal than the open one; to approve that, write {expected}"
        asked.add((match[1], opened.record.hash))
    if len(asked) > 1:
        both = ", ".join(f"the {page} says {text[:SHOWN]!r}" for page, text in given.items())
        return f"the tags {REVIEW} disagree: {both}; delete one of them, or write the same"
    if asked == {("approve", opened.record.hash)} and opened.persons > 1:
        return (
            f"proposal {opened.short} takes two named persons, and a tag names nobody: `tamis approve {opened.short} "
            "--by NAME`, or the form with the field `by`; a rejection by tag counts"
        )
    return ""
