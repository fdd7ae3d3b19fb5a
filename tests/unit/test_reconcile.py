"""Audit log, reconciliation and rollback on a registry in memory: kills before each write, several writers, other tools."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace

import mlflow
import pytest

from catdog_pyfunc.errors import InvalidSetting, PromotionLost, RegistryError, TrackingError
from catdog_pyfunc.pipeline.registry import audit_log, reconcile, versions
from catdog_pyfunc.pipeline.registry.audit_log import PROMOTED, REFUSED, Entry, SequenceConflict, open_audit_log
from catdog_pyfunc.pipeline.registry.state import replay
from tests.unit.fake_registry import FakeRegistry, Killed

NAME = "model"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    fake = FakeRegistry(NAME)
    monkeypatch.setattr(mlflow, "MlflowClient", lambda: fake)
    monkeypatch.setattr(reconcile.time, "sleep", lambda seconds: None)
    return fake


def promote(version: str, alias: str = "production", reason: str = "it is better") -> Entry:
    log = open_audit_log(NAME)
    seen = reconcile.reconcile(log)
    entry = Entry(PROMOTED, alias, version, replay(seen).aliases.get(alias), reason)
    reconcile.commit(log, entry, seen)
    return entry


def stages(registry: FakeRegistry) -> dict[str, str]:
    return {number: version.tags["stage"] for number, version in registry.versions.items() if "stage" in version.tags}


def assert_consistent(registry: FakeRegistry) -> None:
    """Audit log, aliases, tags and descriptions agree, and nothing is left to do."""
    entries, done = open_audit_log(NAME).read()
    state = replay(entries)
    assert done
    assert registry.aliases == state.aliases
    assert stages(registry) == state.stages
    for number, stage in state.stages.items():
        assert f"**{stage}**" in registry.versions[number].description
    assert registry.description.count("- **") == len(entries)
    active = [found.name for found in registry.experiments.values() if found.lifecycle_stage == "active"]
    assert active == [f"{NAME} history"]
    assert (
        registry.runs[registry.get_experiment_by_name(f"{NAME} history").tags["catdog.audit_log"]].info.status == "FINISHED"
    )


def test_versions_are_promoted_and_rolled_back(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch):
    parents: list[str] = []
    promote("1")
    promote("2", "staging")
    assert registry.aliases == {"production": "1", "staging": "2"}
    assert stages(registry) == {"1": "production", "2": "staging"}
    promote("2")
    assert registry.aliases == {"production": "2", "archived": "1"}
    promote("3")
    assert registry.aliases == {"production": "3", "archived": "2"}
    assert stages(registry) == {"1": "archived", "2": "archived", "3": "production"}
    assert [(entry.version, entry.reason) for entry in (reconcile.roll_back(NAME) for _ in "12")] == [("2", ""), ("1", "")]
    assert (registry.aliases, stages(registry)["3"]) == ({"production": "1", "archived": "2"}, "archived")
    with pytest.raises(RegistryError, match="nothing to roll back to: version 1 is the first in 'production'"):
        reconcile.roll_back(NAME)
    promote("4")
    monkeypatch.setattr(reconcile.tracking, "set_parent_run", parents.append)
    monkeypatch.setattr(reconcile.tracking, "active_run_id", lambda: "run of the rollback")
    entry = reconcile.roll_back(NAME, reason="wrong on kittens")
    assert (entry.run_id, parents) == ("run of the rollback", ["run 1"])
    assert (entry.action, entry.version, entry.previous, entry.reason) == ("rolled back", "1", "4", "wrong on kittens")
    assert [entry.action for entry in reconcile.history(NAME)].count("rolled back") == 3
    assert_consistent(registry)


def test_promoting_an_archived_version_again_takes_the_archived_alias_from_it(registry: FakeRegistry):
    promote("1")
    promote("2")
    promote("1")
    assert registry.aliases == {"production": "1", "archived": "2"}
    assert stages(registry) == {"1": "production", "2": "archived"}
    assert reconcile.roll_back(NAME).version == "2"


def test_an_alias_of_ones_own_has_a_history_of_its_own_and_no_stage(registry: FakeRegistry):
    promote("1", "canary")
    promote("2", "canary")
    assert (registry.aliases, stages(registry)) == ({"canary": "2"}, {})
    assert reconcile.roll_back(NAME, "canary").version == "1"
    assert registry.aliases == {"canary": "1"}


def test_a_version_in_staging_and_production_leaves_staging(registry: FakeRegistry):
    promote("1", "staging")
    promote("2", "production")
    promote("2", "staging")
    assert registry.aliases == {"production": "2", "staging": "2", "archived": "1"}
    assert stages(registry) == {"1": "archived", "2": "production"}
    promote("1", "production")
    assert registry.aliases == {"production": "1", "staging": "2"}
    assert stages(registry) == {"1": "production", "2": "staging"}


def test_a_rollback_of_an_alias_that_was_never_set_is_refused(registry: FakeRegistry):
    with pytest.raises(RegistryError, match="'production' was never set; nothing was changed"):
        reconcile.roll_back(NAME)
    with pytest.raises(RegistryError, match="there is no model 'other'"):
        reconcile.roll_back("other")
    with pytest.raises(RegistryError, match="there is no model 'other'"):
        reconcile.history("other")
    assert reconcile.history(NAME) == []
    assert registry.description == ""


def test_a_rollback_skips_versions_that_were_deleted(registry: FakeRegistry):
    for version in ("1", "2", "3"):
        promote(version)
    del registry.versions["2"]
    assert reconcile.roll_back(NAME).version == "1"
    assert registry.aliases["production"] == "1"


def test_an_alias_that_was_moved_by_other_means_is_recorded_and_can_be_rolled_back(
    registry: FakeRegistry, capsys: pytest.CaptureFixture[str]
):
    promote("1")
    registry.aliases["production"] = "4"
    assert [(entry.action, entry.version) for entry in reconcile.history(NAME)] == [("promoted", "1"), ("found", "4")]
    assert "production was moved from 1 to 4 by other means: recorded" in capsys.readouterr().err
    found = reconcile.history(NAME)[-1]
    assert (found.previous, found.author, found.reason) == ("1", "unknown", "moved by other means, noticed now")
    assert reconcile.roll_back(NAME).version == "1"
    assert_consistent(registry)


def test_what_was_in_production_before_the_first_promotion_can_be_rolled_back_to(registry: FakeRegistry):
    registry.aliases["production"] = "3"
    promote("4")
    assert reconcile.roll_back(NAME).version == "3"
    assert_consistent(registry)


def test_an_alias_that_somebody_removed_stays_removed_and_can_be_rolled_back(registry: FakeRegistry):
    promote("1")
    promote("2")
    del registry.aliases["production"]
    promote("3", "staging")
    assert registry.aliases == {"staging": "3", "archived": "1"}
    assert stages(registry)["2"] == "archived"
    assert [(entry.action, entry.version) for entry in reconcile.history(NAME)][2] == ("found", "")
    assert reconcile.roll_back(NAME).version == "1"
    assert_consistent(registry)


def test_an_alias_that_was_removed_and_set_again_counts_once_in_its_history(registry: FakeRegistry):
    promote("1")
    promote("2")
    del registry.aliases["production"]
    promote("2")
    assert reconcile.roll_back(NAME).version == "1"


def test_a_version_whose_alias_was_removed_keeps_the_stage_of_another_alias(registry: FakeRegistry):
    promote("1")
    promote("1", "canary")
    promote("1", "staging")
    del registry.aliases["staging"]
    reconcile.history(NAME)
    assert stages(registry) == {"1": "production"}
    assert_consistent(registry)


def test_an_archived_alias_of_somebody_elses_is_neither_recorded_nor_removed(registry: FakeRegistry):
    registry.aliases["archived"] = "4"
    promote("1")
    assert registry.aliases == {"production": "1", "archived": "4"}
    promote("2")
    registry.aliases["archived"] = "3"
    assert [entry.version for entry in reconcile.history(NAME)] == ["1", "2"]


def test_an_archived_version_that_was_deleted_does_not_stop_the_next_move(registry: FakeRegistry):
    promote("1")
    promote("2")
    del registry.versions["1"], registry.aliases["archived"]  # MLflow removes a version's aliases with it
    promote("3", "staging")
    assert registry.aliases == {"production": "2", "staging": "3"}


def test_an_alias_that_is_moved_while_another_client_commits_is_not_recorded(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
):
    promote("1")
    registry.aliases["production"] = "2"  # as another client's commit has it for a moment

    def finished(seconds: float) -> None:
        registry.aliases["production"] = "1"

    monkeypatch.setattr(reconcile.time, "sleep", finished)
    assert len(reconcile.history(NAME)) == 1


@pytest.mark.parametrize("move", ["first", "next", "rollback"])
def test_a_move_killed_before_any_write_is_finished_by_the_next_command_or_was_never_made(
    move: str, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audit_log, "_UNCLAIMED_TIMEOUT_S", 0.0)  # no other writer is about to claim it
    outcomes = []
    for step in range(100):
        registry.__init__(NAME)  # type: ignore[misc]
        if move != "first":
            promote("1")
            promote("2", "staging")
            if move == "rollback":
                promote("2")
        before = len(reconcile.history(NAME)) if move != "first" else 0
        registry.die_before, registry.writes = step, 0
        try:
            reconcile.roll_back(NAME) if move == "rollback" else promote("2")
            killed = False
        except Killed:
            killed = True
        registry.die_before = None
        outcomes.append(len(reconcile.history(NAME)) - before)
        assert_consistent(registry)
        if not killed:
            break
    assert not killed
    assert len(outcomes) > 5
    assert outcomes == sorted(outcomes)  # once a move stands, no later kill undoes it
    assert set(outcomes) == {0, 1}


def test_of_two_moves_decided_on_the_same_state_one_is_lost(registry: FakeRegistry):
    promote("1")
    log = open_audit_log(NAME)
    seen = reconcile.reconcile(log)
    promote("2")
    with pytest.raises(PromotionLost, match=r"meanwhile .* moved production to version 2 at .* not moved to version 3"):
        reconcile.commit(log, Entry(PROMOTED, "production", "3", "1"), seen)
    with pytest.raises(PromotionLost, match="staging was not moved to version 2"):
        reconcile.commit(log, Entry(PROMOTED, "staging", "2"), seen)  # the same version
    reconcile.commit(log, Entry(PROMOTED, "staging", "3"), seen)  # neither the same alias nor the same version
    assert registry.aliases == {"production": "2", "staging": "3", "archived": "1"}
    assert_consistent(registry)


def test_a_refusal_meanwhile_does_not_lose_a_move(registry: FakeRegistry):
    promote("1")
    log = open_audit_log(NAME)
    seen = reconcile.reconcile(log)
    reconcile.record(log, Entry(REFUSED, "production", "2", "1"))
    reconcile.commit(log, Entry(PROMOTED, "production", "3", "1"), seen)
    assert [entry.version for entry in reconcile.history(NAME)] == ["1", "2", "3"]
    assert registry.aliases["production"] == "3"
    assert "2" not in stages(registry)


@pytest.mark.parametrize("move", [reconcile.commit, reconcile.record])
def test_a_writer_that_loses_the_number_tries_the_next_one(
    move: Callable[..., None], registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
):
    log = open_audit_log(NAME)
    other = Entry(REFUSED, "production", "4")
    real = log.append

    def beaten(entry: Entry, position: int) -> None:
        if position == 0:
            real(other, 0)
        real(entry, position)

    monkeypatch.setattr(log, "append", beaten)
    entry = Entry(PROMOTED, "production", "1")
    move(log, entry, []) if move is reconcile.commit else move(log, entry)
    assert reconcile.history(NAME) == [other, entry]


def test_an_entry_written_during_reconciliation_is_followed_too(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch):
    promote("1")
    log = open_audit_log(NAME)
    log.append(Entry(PROMOTED, "production", "2", "1"), 1)
    real, late = reconcile.update_model_page, [Entry(PROMOTED, "production", "3", "2")]

    def meanwhile(*args: object) -> None:
        real(*args)  # type: ignore[arg-type]
        if late:
            log.append(late.pop(), 2)

    monkeypatch.setattr(reconcile, "update_model_page", meanwhile)
    assert len(reconcile.reconcile(log)) == 3
    assert registry.aliases["production"] == "3"
    assert_consistent(registry)


def test_a_store_that_fails_for_a_while_is_retried(registry: FakeRegistry):
    promote("1")
    registry.failures, registry.fail_on = 5, "set_model_version_tag"
    promote("2")
    assert_consistent(registry)


def test_a_store_that_keeps_failing_is_named_and_nothing_is_lost(registry: FakeRegistry):
    promote("1")
    registry.failures, registry.fail_on = 6, "set_model_version_tag"
    with pytest.raises(TrackingError, match=r"aliases and tags of 'model' cannot be brought in line .*the store is busy"):
        promote("2")
    registry.failures = 0
    assert len(reconcile.history(NAME)) == 2
    assert_consistent(registry)


def test_entries_are_in_order_beyond_9999(registry: FakeRegistry):
    log = open_audit_log(NAME)
    (run,) = registry.runs.values()
    last = 10_001
    for number in (1, 9_999, 10_000, last):
        run.data.params[f"{number:04}"] = json.dumps(asdict(Entry(PROMOTED, "production", str(number))))
    assert [entry.version for entry in log.read()[0]] == ["1", "9999", "10000", "10001"]
    run.data.params["9999.done"] = "yes"
    assert not log.read()[1]
    log.mark_done(last)
    assert log.read()[1]


def test_an_entry_is_read_as_it_was_written(registry: FakeRegistry):
    log = open_audit_log(NAME)
    written = Entry("forced", "production", "2", "1", "größer", {"accuracy": 0.5}, "abc", ("accuracy", "log_loss"), "run")
    log.append(written, 0)
    assert log.read() == ([written], False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", written.at)
    assert "größer" in next(iter(registry.runs.values())).data.params["0001"]


def test_writing_an_entry_twice_is_no_conflict_but_an_equal_one_of_somebody_else_is(registry: FakeRegistry):
    log = open_audit_log(NAME)
    entry = Entry(PROMOTED, "production", "1")
    log.append(entry, 0)
    log.append(entry, 0)
    with pytest.raises(SequenceConflict):
        log.append(replace(entry, id="another"), 0)


def test_an_audit_log_that_cannot_be_written_is_named(registry: FakeRegistry):
    log = open_audit_log(NAME)
    registry.failures = 1
    with pytest.raises(RegistryError, match=r"audit log of 'model' cannot be written \(the store is busy\)"):
        log.append(Entry(PROMOTED, "production", "1"), 0)


def test_a_reason_too_long_for_the_audit_log_is_refused_before_anything_moves(registry: FakeRegistry):
    with pytest.raises(InvalidSetting, match=r"reason is too long \(8000 characters\).*MLflow allows 6000; shorten it"):
        promote("1", reason="why " * 2000)
    assert registry.aliases == {}
    room = 6000 - len(json.dumps(asdict(Entry(PROMOTED, "production", "1"))))
    with pytest.raises(InvalidSetting, match="an entry of the audit log has 6001 characters with it"):
        promote("1", reason="w" * (room + 1))
    promote("1", reason="w" * room)
    assert registry.aliases == {"production": "1"}


def test_the_audit_log_is_found_again_and_says_what_it_is(registry: FakeRegistry):
    promote("1")
    promote("2")
    (experiment,) = registry.experiments.values()
    assert experiment.name == "model history"
    assert "who moved which alias" in experiment.tags["mlflow.note.content"]
    assert next(iter(registry.runs.values())).info.run_name == "model history"


def test_an_audit_log_that_two_create_at_once_exists_once(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch):
    real = registry.rename_experiment

    def beaten(experiment_id: str, name: str) -> None:
        monkeypatch.setattr(registry, "rename_experiment", real)
        open_audit_log(NAME).append(Entry(PROMOTED, "production", "1"), 0)
        real(experiment_id, name)

    monkeypatch.setattr(registry, "rename_experiment", beaten)
    assert [entry.version for entry in open_audit_log(NAME).read()[0]] == ["1"]
    assert [found.lifecycle_stage for found in registry.experiments.values()] == ["deleted", "active"]


def test_an_audit_log_that_cannot_be_created_is_named(registry: FakeRegistry):
    registry.failures = 1
    with pytest.raises(TrackingError, match=r"audit log 'model history' cannot be created in .*the store is busy"):
        open_audit_log(NAME)


def test_what_another_writer_may_be_about_to_claim_is_left_alone(registry: FakeRegistry):
    registry.die_before = 2
    with pytest.raises(Killed):
        open_audit_log(NAME)
    registry.die_before = None
    (left,) = registry.experiments.values()
    open_audit_log(NAME)
    assert left.lifecycle_stage == "active"
    left.creation_time -= 1000 * 601
    open_audit_log(NAME)
    assert left.lifecycle_stage == "deleted"


def test_a_deleted_audit_log_is_named_with_the_remedy(registry: FakeRegistry):
    promote("1")
    (experiment,) = registry.experiments.values()
    experiment.lifecycle_stage = "deleted"
    with pytest.raises(RegistryError, match=f"mlflow experiments restore -x {experiment.experiment_id}"):
        reconcile.history(NAME)
    experiment.lifecycle_stage = "active"
    assert len(reconcile.history(NAME)) == 1


def test_an_experiment_that_only_has_the_name_of_an_audit_log_is_named(registry: FakeRegistry):
    registry.create_experiment("model history")
    with pytest.raises(RegistryError, match="'model history' is not an audit log"):
        reconcile.history(NAME)


def test_versions_are_found_or_named(registry: FakeRegistry):
    assert versions.find_version(NAME, "2").version == "2"
    assert versions.latest_version(NAME) == "4"
    with pytest.raises(RegistryError, match=r"'model' has no version '9' in .*: the latest is 4"):
        versions.find_version(NAME, "9")
    with pytest.raises(RegistryError, match="there is no model 'other'"):
        versions.find_version("other", "1")
    registry.versions.clear()
    with pytest.raises(RegistryError, match="'model' has no versions"):
        versions.latest_version(NAME)
