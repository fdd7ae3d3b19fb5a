"""MLflow runs: how they end, what they are called, and what the experiment page shows."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import mlflow
import pytest
from mlflow.entities import Run

from catdog_pyfunc import internals
from catdog_pyfunc.errors import TrackingError
from catdog_pyfunc.pipeline import interrupted, tracking
from catdog_pyfunc.pipeline.processes import sigterm_as_interrupt
from catdog_pyfunc.pipeline.tracking import ui


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def client(store: str) -> Iterator[mlflow.MlflowClient]:
    mlflow.set_tracking_uri(store)
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)


def get(client: mlflow.MlflowClient, active: mlflow.ActiveRun) -> Run:
    return client.get_run(active.info.run_id)


def test_a_run_that_ends_well_is_finished_and_in_the_experiment_catdog(client: mlflow.MlflowClient):
    with tracking.run() as active:
        pass
    assert get(client, active).info.status == "FINISHED"
    assert client.get_experiment(active.info.experiment_id).name == "catdog"


@pytest.mark.parametrize("failure", [ValueError("no such thing\nand more"), SystemExit("no such thing")])
def test_a_run_that_raises_is_failed_and_says_why(failure: BaseException, client: mlflow.MlflowClient):
    with pytest.raises(type(failure)), tracking.run() as active:
        raise failure
    run = get(client, active)
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", "no such thing")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_killed(number: int, client: mlflow.MlflowClient):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), tracking.run() as active:
        signal.raise_signal(number)
    assert get(client, active).info.status == "KILLED"
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_signal_that_cuts_off_the_end_of_a_failed_run_leaves_it_killed(
    monkeypatch: pytest.MonkeyPatch, client: mlflow.MlflowClient
):
    """torchrun sends SIGTERM to a process that fails because another one was lost."""
    set_terminated = mlflow.MlflowClient.set_terminated

    def cut_off(*args: object) -> None:
        monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", set_terminated)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", cut_off)
    with pytest.raises(KeyboardInterrupt), tracking.run() as active:
        raise ValueError("connection reset by peer")
    assert get(client, active).info.status == "KILLED"


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_gets_through_to_a_clean_up_that_hangs(first: int, second: int):
    """But for the SIGTERM that `mlflow run` sends after the terminal's Ctrl-C."""
    cleaned_up = False

    def work() -> None:
        nonlocal cleaned_up
        with sigterm_as_interrupt():
            try:
                signal.raise_signal(first)
            finally:
                signal.raise_signal(second)
                cleaned_up = True

    with pytest.raises(KeyboardInterrupt):
        work()
    assert cleaned_up == ((first, second) == (signal.SIGINT, signal.SIGTERM))


def test_after_ctrl_c_and_mlflows_sigterm_the_next_signal_gets_through():
    with sigterm_as_interrupt():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_a_second_ctrl_c_ends_the_wait_for_a_dead_server(monkeypatch: pytest.MonkeyPatch, client: mlflow.MlflowClient):
    marked: list[str] = []
    monkeypatch.setattr(interrupted, "mark_killed", marked.append)
    with tracking.run() as created:
        pass
    monkeypatch.setenv("MLFLOW_RUN_ID", created.info.run_id)
    end_run = mlflow.end_run

    def hang(status: str = "FINISHED") -> None:
        end_run(status)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second Ctrl-C was ignored")

    monkeypatch.setattr(mlflow, "end_run", hang)
    with pytest.raises(KeyboardInterrupt), tracking.run():
        signal.raise_signal(signal.SIGINT)
    assert marked == [created.info.run_id], "the process that outlives `mlflow run` must be started before anything can hang"


@pytest.mark.parametrize("name", ["resnet-lr-3", "more-photos-2", "baseline"])
def test_a_run_that_its_user_named_keeps_the_name(name: str, client: mlflow.MlflowClient):
    with mlflow.start_run(run_name=name) as active:
        tracking.name_run("head · mobilenet_v2")
    assert get(client, active).info.run_name == name


def test_a_name_that_mlflow_made_up_is_replaced_as_often_as_need_be(client: mlflow.MlflowClient):
    with mlflow.start_run() as active:
        tracking.name_run("evaluate")
        tracking.name_run("evaluate v2 on pets")
    assert get(client, active).info.run_name == "evaluate v2 on pets"


def test_an_active_run_is_used_and_left_open(client: mlflow.MlflowClient):
    with mlflow.start_run() as active:
        with tracking.active_or_new_run() as used:
            assert used.info.run_id == active.info.run_id
        assert get(client, active).info.status == "RUNNING"


def test_without_an_active_run_one_is_started_and_ended(client: mlflow.MlflowClient):
    with pytest.raises(ValueError, match="no"), tracking.active_or_new_run() as started:
        raise ValueError("no")
    assert mlflow.active_run() is None
    assert get(client, started).info.status == "FAILED"


def test_parameters_that_mlflow_run_has_logged_are_not_logged_again(client: mlflow.MlflowClient):
    with tracking.run() as active:
        mlflow.log_param("seed", "0")
        tracking.log_params({"seed": 0.0, "batch_size": 16})  # another text for seed would be refused
    assert get(client, active).data.params == {"seed": "0", "batch_size": "16"}


def test_a_store_that_cannot_be_written_is_named():
    mlflow.set_tracking_uri("sqlite:////proc/no/mlflow.db")
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    with (
        pytest.raises(TrackingError, match=r"cannot use the tracking store sqlite:////proc/no/mlflow\.db .*may write there"),
        tracking.run(),
    ):
        pytest.fail("there is no such store")


def test_a_server_that_nobody_runs_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, but nobody listens
        uri = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        mlflow.set_tracking_uri(uri)
        with pytest.raises(TrackingError, match=f"cannot use the tracking store {uri} "), tracking.run():
            pytest.fail("there is no such server")


def test_the_experiment_page_gets_a_description_and_a_view_but_keeps_what_a_user_wrote(client: mlflow.MlflowClient):
    mine, theirs = client.create_experiment("mine"), client.create_experiment("theirs")
    client.set_experiment_tag(mine, internals.NOTE_TAG, "our kittens")
    for experiment in (mine, theirs):
        ui.set_up_experiment_page(experiment)
    assert client.get_experiment(mine).tags[internals.NOTE_TAG] == "our kittens"
    tags = client.get_experiment(theirs).tags
    assert "Results, best first" in tags[internals.NOTE_TAG]
    assert "test/accuracy" in tags[internals.SHARED_VIEW_TAG.format(name="results")]
