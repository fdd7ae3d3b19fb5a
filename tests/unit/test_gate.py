from __future__ import annotations

import numpy as np
import pytest

from catdog_pyfunc.errors import InvalidSetting
from catdog_pyfunc.pipeline.registry.gate import Check, Thresholds, checks_table, mcnemar
from catdog_pyfunc.pipeline.registry.promotion import Promotion


def answers(both: int, only_champion: int, only_challenger: int) -> tuple[np.ndarray, np.ndarray]:
    champion = [True] * (both + only_champion) + [False] * only_challenger
    challenger = [True] * both + [False] * only_champion + [True] * only_challenger
    return np.array(challenger), np.array(champion)


@pytest.mark.parametrize(
    ("only_champion", "only_challenger", "p"),
    [
        (0, 0, 1.0),
        (10, 2, (66 + 12 + 1) / 2**12),  # C(12, 10) + C(12, 11) + C(12, 12)
        (2, 10, 1 - (1 + 12) / 2**12),
        (5, 0, 1 / 2**5),
        (3000, 3000, 0.505),  # beyond what a float holds on the way
    ],
)
def test_mcnemar_is_the_exact_binomial_tail(only_champion: int, only_challenger: int, p: float):
    assert mcnemar(*answers(7, only_champion, only_challenger)) == pytest.approx(p, abs=2e-4)


def test_what_both_got_right_does_not_count():
    assert mcnemar(*answers(0, 6, 1)) == mcnemar(*answers(10_000, 6, 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_accuracy": 1.1},
        {"alpha": -0.1},
        {"log_loss_margin": -1},
        {"latency_ratio": float("nan")},
        {"recall_margin": -1},
    ],
)
def test_a_threshold_that_means_nothing_is_named(wrong: dict[str, float]):
    (name,) = wrong
    with pytest.raises(InvalidSetting, match=f"{name} is {wrong[name]}"):
        Thresholds(**wrong)


@pytest.mark.parametrize("reason", ["", "  "])
def test_forcing_needs_a_reason(reason: str):
    with pytest.raises(InvalidSetting, match="say why"):
        Promotion("1", force=True, reason=reason)


@pytest.mark.parametrize("alias", ["archived", "latest", "v3", "a b"])
def test_an_alias_that_is_no_place_for_a_promotion_is_refused(alias: str):
    with pytest.raises(InvalidSetting, match=alias):
        Promotion("1", alias)


def test_the_table_has_a_line_a_check():
    checks = [Check("accuracy", "0.9", "", "≥ 0.8", True), Check("answers", "it died", "", "an answer", False)]
    assert [row[-1] for row in checks_table(checks)] == ["verdict", "ok", "FAILED"]
