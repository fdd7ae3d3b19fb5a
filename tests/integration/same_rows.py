"""Compares predictions of servers and of the model in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest


def assert_same(rows: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> None:
    """The same labels and, to 1e-6, the same probabilities, in the same order."""
    assert [row["label"] for row in rows] == [row["label"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
