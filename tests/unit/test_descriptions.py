"""What a registered model's and a version's page say, and that a person's text on them stays."""

from __future__ import annotations

from dataclasses import replace

import mlflow
import pytest

from catdog_pyfunc.pipeline.console import text_table
from catdog_pyfunc.pipeline.registry.audit_log import FORCED, FOUND, PROMOTED, REFUSED, Entry
from catdog_pyfunc.pipeline.registry.descriptions import audit_table, update_model_page, update_version_page
from tests.unit.fake_registry import MAX_DESCRIPTION, FakeRegistry

NAME = "model"
MARK = " <!-- catdog -->"
METRICS = {"accuracy": 0.986, "champion_accuracy": 0.984, "log_loss": 0.05, "calibration_error": 0.01}
FIRST = Entry(PROMOTED, "production", "1", None, at="2026-01-02T03:04:05+00:00", author="ann")
SECOND = Entry(
    PROMOTED,
    "production",
    "2",
    "1",
    "more\nimages",
    METRICS,
    data_digest="d1ge57",
    at="2026-02-03T04:05:06+00:00",
    author="bob",
)
THIRD = Entry(REFUSED, "production", "3", "2", failed=("accuracy", "log_loss"), at="2026-03-04T05:06:07+00:00", author="cy")
REMOVED = Entry(FOUND, "production", "", "2", "by other means", at="2026-04-05T06:07:08+00:00", author="unknown")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    fake = FakeRegistry(NAME)
    monkeypatch.setattr(mlflow, "MlflowClient", lambda: fake)
    return fake


def update_version(registry: FakeRegistry, version: str, stage: str, *entries: Entry) -> list[str]:
    """The lines of the version's description, as MLflow's UI shows them."""
    update_version_page(registry, NAME, version, stage, entries)  # type: ignore[arg-type]
    return registry.versions[version].description.replace(MARK, "").splitlines()


def update_model(registry: FakeRegistry, *entries: Entry) -> list[str]:
    update_model_page(registry, NAME, entries)  # type: ignore[arg-type]
    return registry.description.replace(MARK, "").splitlines()


def test_a_version_says_its_stage_since_when_by_whom_why_and_on_which_metrics(registry: FakeRegistry):
    lines = update_version(registry, "2", "production", FIRST, SECOND, THIRD)
    assert lines == [
        "**production** · promoted to production, 2026-02-03 04:05:06 UTC, by bob: more images",
        "accuracy 0.9860 (champion 0.9840), log loss 0.0500, calibration error 0.0100; data `d1ge57`",
        "",
        "# card",
        "",
        "what it is",
    ]
    assert registry.versions["2"].tags == {
        "stage": "production",
        "stage.since": "2026-02-03T04:05:06+00:00",
        "stage.by": "bob",
        "stage.reason": "more\nimages",
    }


def test_a_replaced_version_says_by_which(registry: FakeRegistry):
    assert update_version(registry, "1", "archived", FIRST, SECOND)[0] == (
        "**archived** · replaced by version 2, 2026-02-03 04:05:06 UTC, by bob: more images"
    )
    lines = update_version(registry, "2", "archived", FIRST, SECOND, REMOVED)
    assert lines[0] == "**archived** · replaced by version none, 2026-04-05 06:07:08 UTC, by unknown: by other means"
    assert lines[1].startswith("accuracy 0.9860")


def test_a_version_shows_its_own_metrics_and_the_latest(registry: FakeRegistry):
    again = replace(SECOND, metrics={"accuracy": 0.75}, previous="1")
    assert not any("accuracy" in line for line in update_version(registry, "1", "archived", FIRST, SECOND))
    assert update_version(registry, "2", "production", SECOND, again)[1] == "accuracy 0.7500; data `d1ge57`"


def test_a_version_that_was_deleted_has_no_page(registry: FakeRegistry):
    update_version_page(registry, NAME, "9", "archived", [FIRST])  # type: ignore[arg-type]
    assert registry.writes == 0


def test_what_is_up_to_date_is_not_written_again(registry: FakeRegistry):
    update_version(registry, "2", "production", FIRST, SECOND)
    update_model(registry, FIRST, SECOND)
    registry.writes = 0
    update_version(registry, "2", "production", FIRST, SECOND)
    update_model(registry, FIRST, SECOND)
    assert registry.writes == 0


@pytest.mark.parametrize(
    "written",
    [
        "> a reviewer's quote\n\n**looks good**",
        "## History\n\nbegan as a notebook",
        "- **production: version 1**, as I said",
        "it ends with <!-- catdog --> here",
    ],
)
def test_a_persons_text_stays_whatever_it_looks_like(written: str, registry: FakeRegistry):
    registry.versions["2"].description = registry.description = written
    for entries in ([FIRST, SECOND], [FIRST, SECOND, REMOVED], [FIRST, SECOND, REMOVED, THIRD]):
        update_version(registry, "2", "production", *entries)
        update_model(registry, *entries)
        registry.versions["2"].description = "above\n" + registry.versions["2"].description
        registry.description += "\nbelow"
    update_version(registry, "2", "archived", FIRST, SECOND)
    update_model(registry, FIRST)
    version, model = registry.versions["2"].description, registry.description
    assert version.count(written) == model.count(written) == 1
    assert (version.count("above"), model.count("below")) == (3, 3)
    assert version.count("**archived**") == 1
    assert "**production** ·" not in version
    assert model.count("by ann") == 1
    assert "by bob" not in model


def test_a_model_lists_its_history_newest_first_below_its_description(registry: FakeRegistry):
    registry.description = "Tells cats from dogs."
    assert update_model(registry, FIRST, SECOND, THIRD, REMOVED) == [
        "Tells cats from dogs.",
        "",
        "## History",
        "",
        "- **production: version 2 → none**, found 2026-04-05 06:07:08 UTC by unknown: by other means",
        "- **production: version 2 → 3**, refused 2026-03-04 05:06:07 UTC by cy: failed: accuracy, log_loss",
        "- **production: version 1 → 2**, promoted 2026-02-03 04:05:06 UTC by bob, accuracy 0.9860 (champion 0.9840): "
        "more images",
        "- **production: version 1**, promoted 2026-01-02 03:04:05 UTC by ann",
    ]


def test_a_model_without_a_description_or_a_history(registry: FakeRegistry):
    assert update_model(registry) == []
    assert update_model(registry, FIRST)[0] == "## History"
    registry.description = "somebody wrote this"
    assert update_model(registry) == ["somebody wrote this"]


def test_a_long_history_is_shortened_to_the_newest_entries(registry: FakeRegistry):
    registry.description = "Tells cats from dogs."
    lines = update_model(registry, *[FIRST] * 200, SECOND)
    assert len(registry.description) <= MAX_DESCRIPTION
    assert len(registry.description) > MAX_DESCRIPTION - 200
    assert lines[0] == "Tells cats from dogs."
    assert "version 1 → 2" in lines[4]
    assert lines[-1] == "- … `mlflow run . -e history` prints all of it"


@pytest.mark.parametrize("room", [0, 100])
def test_a_description_that_leaves_no_room_is_left_alone(room: int, registry: FakeRegistry):
    written = "x" * (MAX_DESCRIPTION - room)
    registry.versions["2"].description = registry.description = written
    update_version(registry, "2", "production", FIRST, SECOND)
    update_model(registry, FIRST, SECOND)
    assert registry.description.startswith(written)
    assert registry.description.replace(MARK, "").strip() in (
        written,
        f"{written}\n\n## History\n\n- … `mlflow run . -e history` prints all of it",
    )
    assert registry.versions["2"].description == written
    assert registry.versions["2"].tags["stage"] == "production"


def test_a_description_exactly_as_long_as_allowed_is_written(registry: FakeRegistry):
    update_version(registry, "2", "production", FIRST, SECOND)
    update_model(registry, FIRST)
    ours, history = len(registry.versions["2"].description), len(registry.description)
    rest = registry.versions["2"].description.splitlines()[-1]
    registry.versions["2"].description += "x" * (MAX_DESCRIPTION - ours)
    registry.description = "y" * (MAX_DESCRIPTION - history - 2)
    update_version(registry, "2", "archived", FIRST, SECOND)
    assert "what it is" in rest
    update_model(registry, FIRST)
    assert len(registry.description) == MAX_DESCRIPTION


def test_a_long_reason_is_shortened_on_pages_but_not_in_tags(registry: FakeRegistry):
    long = Entry(PROMOTED, "production", "1", reason="why " * 1000, at=FIRST.at, author="ann")
    lines = update_version(registry, "1", "production", long)
    assert lines[0].endswith("why…") or lines[0].endswith("…")
    assert len(lines[0]) <= 501
    assert registry.versions["1"].tags["stage.reason"] == "why " * 1000


def test_the_table_has_one_row_per_entry():
    rows = audit_table([FIRST, SECOND, THIRD, REMOVED])
    assert rows[0] == ["when (UTC)", "who", "action", "alias", "from", "to", "metrics", "data", "why"]
    assert rows[1] == ["2026-01-02 03:04:05", "ann", "promoted", "production", "-", "1", "", "", ""]
    accuracy = "accuracy 0.9860 (champion 0.9840)"
    assert rows[2] == ["2026-02-03 04:05:06", "bob", "promoted", "production", "1", "2", accuracy, "d1ge57", "more images"]
    assert rows[3][-1] == "failed: accuracy, log_loss"
    assert rows[4][4:6] == ["2", "-"]
    forced = Entry(FORCED, "production", "3", reason="all we have", failed=("accuracy",))
    assert audit_table([forced])[1][-1] == "all we have; failed: accuracy"
    assert "more images" in text_table(rows)
