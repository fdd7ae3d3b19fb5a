"""The documentation as tests see it: its pages, and the commands, code and tables on them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.project import REPOSITORY

_BLOCK = re.compile(r"([^\n]*)\n```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_NOT_RUN = re.compile(r"<!-- not run: \S.* -->")


@dataclass(frozen=True)
class Step:
    """A line of shell, or a block of Python; `runs` is False below `<!-- not run: why -->`."""

    page: str
    language: str
    text: str
    runs: bool

    @property
    def command(self) -> str:
        """The text without its comment."""
        return re.sub(r"\s+# .*", "", self.text)


def pages() -> list[Path]:
    """README, then the site's pages in the order of its navigation."""
    nav = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]
    return [REPOSITORY / "README.md", *(REPOSITORY / "docs" / name for name in _names(nav))]


def steps(page: Path) -> list[Step]:
    """Everything a page tells its reader to run."""
    return [
        Step(page.name, language, text, runs=not _NOT_RUN.fullmatch(before))
        for before, language, block in _BLOCK.findall(page.read_text())
        for text in (filter(None, block.splitlines()) if language == "sh" else [block])
    ]


def tables(page: str) -> Iterator[list[list[str]]]:
    """Each table of a page in docs/ as rows of cells, without backticks; the first row is the head."""
    for table in re.findall(r"(?:^\|.*\|\n)+", (REPOSITORY / "docs" / page).read_text(), re.MULTILINE):
        rows = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in table.splitlines()]
        yield [rows[0], *rows[2:]]


def _names(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from _names(entry)
