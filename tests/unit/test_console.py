"""Progress and tables, on a terminal and in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from catdog_pyfunc.pipeline import console


def test_in_a_log_progress_is_a_line_every_ten_seconds_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def clock() -> Iterator[float]:
        yield from (0.0, 4.0, 11.0, 13.0, 14.0)

    monkeypatch.setattr(time, "monotonic", clock().__next__)
    assert list(console.progress("abcd", "scoring images", 24, done=20)) == list("abcd")
    assert capsys.readouterr().err.splitlines() == [
        "scoring images: 22/24 (11 s, 0/s, 11 s left)",
        "scoring images: 24/24 (14 s, 0/s, 0 s left)",
    ]


def test_on_a_terminal_progress_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(console.progress([1, 2], "embedding images", 2)) == [1, 2]
    shown = capsys.readouterr().err
    assert "embedding images: 100%|" in shown
    assert "2/2" in shown


def test_tables_have_a_header_and_aligned_columns():
    rows = [["check", "needed"], ["accuracy", "0.8"]]
    assert console.text_table(rows) == "check     needed\naccuracy  0.8"
    assert console.markdown_table(rows) == "| check | needed |\n| --- | --- |\n| accuracy | 0.8 |\n"
