"""
The page to check oneself with: questions from `book/quizzes.yaml`, as HTML without a script.

A choice is a radio button, so arrow keys and the space bar work; the answer to it appears by CSS alone (`:checked`).
On paper every right answer is shown.
"""

from __future__ import annotations

import hashlib
import html
from typing import Any

import yaml

import chapters

Question = dict[str, Any]


def read() -> list[dict[str, Any]]:
    """The parts, each with its questions."""
    return list(yaml.safe_load((chapters.BOOK / "quizzes.yaml").read_text(encoding="utf-8")))


def shuffled(question: Question) -> list[tuple[str, str, bool]]:
    """The choices as (text, why, right), in an order that looks random and never changes."""
    own = [(one["say"], one["why"], number == 0) for number, one in enumerate(question["choices"])]
    return sorted(own, key=lambda one: hashlib.sha256(f"{question['ask']}{one[0]}".encode()).hexdigest())


def form(question: Question, name: str) -> str:
    """One question as HTML. *name* is unique on the page: it groups the radio buttons."""
    rows = []
    for number, (say, why, right) in enumerate(shuffled(question)):
        verdict, kind = ("Right.", "lc-right") if right else ("Not quite.", "lc-wrong")
        rows.append(
            f'<div class="lc-choice {kind}"><input type="radio" name="{name}" id="{name}-{number}" '
            f'aria-describedby="{name}-{number}-why">'
            f'<label for="{name}-{number}">{html.escape(say)}</label>'
            f'<p class="lc-why" id="{name}-{number}-why"><strong>{verdict}</strong> {html.escape(why)}</p></div>'
        )
    return f'<fieldset class="lc-quiz"><legend>{html.escape(question["ask"])}</legend>{"".join(rows)}</fieldset>'


def page() -> str:
    """The Markdown that `quiz.md` includes: a section a part, with links to its chapters."""
    sections = []
    for part in read():
        links = ", ".join(f"{{doc}}`{name}`" for name in part["chapters"])
        stem = part["part"].lower().replace(" ", "-")
        forms = [form(question, f"quiz-{stem}-{number}") for number, question in enumerate(part["questions"])]
        sections.append(f"## {part['part']}\n\nAfter {links}.\n")
        sections += [f"```{{raw}} html\n{one}\n```\n" for one in forms]
    return "\n".join(sections)
