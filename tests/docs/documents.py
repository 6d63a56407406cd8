"""Reads the documentation: its blocks of code, its links, the commands and the names that it shows."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

FENCE = re.compile(
    r"^(?P<fence>```+)(?P<language>\S*)[^\n]*\n(?P<text>.*?)^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)|<img[^>]*\bsrc=\"([^\"]+)\"")
SPAN = re.compile(r"`([^`\n]+)`")
HEADING = re.compile(r"^#+\s+(.*)$", re.MULTILINE)
SEPARATORS = re.compile(r"&&|\|\||[;|]")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the document that the text begins at."""

    language: str
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    content = path.read_text(encoding="utf-8")
    return [
        Block(m["language"], m["text"], content.count("\n", 0, m.start("text")) + 1) for m in FENCE.finditer(content)
    ]


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def links(path: Path) -> list[str]:
    """The targets of its links and pictures, those on the web left out."""
    found = [a or b for a, b in LINK.findall(prose(path))]
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    titles = [re.sub(r"[^\w\- ]", "", title.lower()).strip() for title in HEADING.findall(prose(path))]
    return {title.replace(" ", "-") for title in titles}


def commands(path: Path, program: str = "flowkit") -> tuple[list[list[str]], list[list[str]]]:
    """The words after `flowkit` of every command that a document shows: in blocks of `bash`, and in its prose."""
    lines = [line for block in blocks(path) if block.language == "bash" for line in block.text.splitlines()]
    return _commands(lines, program), _commands(spans(path), program)


def spans(path: Path) -> list[str]:
    """What a document's prose shows as code."""
    return SPAN.findall(prose(path))


def _commands(lines: list[str], program: str) -> list[list[str]]:
    found = [_words(part) for line in lines for part in SEPARATORS.split(line)]
    return [words[1:] for words in found if words[:1] == [program] and len(words) > 1]


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # an apostrophe in code that is no command
        return []
