"""MLflow's own server with sign-in, without Docker or TLS: what users with and without permissions get from this project."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import mlflow
import pytest
import requests

from catdog_pyfunc import access, flavor, internals
from catdog_pyfunc.errors import AccessDenied, RegistryError
from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.registry import versions
from catdog_pyfunc.pipeline.registry.audit_log import REFUSED, Entry, open_audit_log
from catdog_pyfunc.pipeline.registry.reconcile import history, record
from tests.conftest import restored_environment
from tests.project import free_port, make_project, running

ADMIN, READER = "admin", "rita"
PASSWORD = "geheim:/@%twelve"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with an audit log, and a user who may only read."""
    project, port = make_project(tmp_path_factory.mktemp("signed")), free_port()
    config = project.folder / "auth.ini"
    config.write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{project.folder}/users.db\n")
    environment = {**project.environment, "MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": "x"}
    environment |= {"MLFLOW_AUTH_ADMIN_USERNAME": ADMIN, "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD}
    command = ["mlflow", "server", "--app-name", "basic-auth", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", project.tracking_uri]
    address = f"http://127.0.0.1:{port}"
    with running(command, f"{address}/health", project.folder / "log", cwd=project.folder, env=environment):
        with restored_environment(), pytest.MonkeyPatch.context() as patch:
            for name, value in (("URI", address), ("USERNAME", ADMIN), ("PASSWORD", PASSWORD)):
                patch.setenv(f"MLFLOW_TRACKING_{name}", value)
            mlflow.MlflowClient().create_registered_model(versions.NAME)
            record(open_audit_log(versions.NAME), Entry(REFUSED, "mine", "1"))
            reader = {"username": READER, "password": PASSWORD}
            created = requests.post(
                f"{address}/api/2.0/mlflow/users/create", json=reader, auth=(ADMIN, PASSWORD), timeout=60
            )
            assert created.ok, created.text
        yield address


@pytest.fixture
def sign_in(address: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)

    def signed_in(user: str, password: str = PASSWORD) -> None:
        access._signed_in_user.cache_clear()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    return signed_in


def run() -> None:
    with tracking.run("a run"):
        pass


def model() -> None:
    with flavor.downloaded_model(f"models:/{versions.NAME}/1"):
        pass


@pytest.mark.parametrize("use", [history, run, model, versions.author])
def test_nobody_is_told_what_to_set(use: Callable[[], object], sign_in: Callable[..., None]):
    access._signed_in_user.cache_clear()
    with pytest.raises(AccessDenied, match=r"sign in to http.*: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        use()


def test_a_wrong_password_is_named_as_such_and_not_shown(sign_in: Callable[..., None]):
    sign_in(READER, "another password")
    with pytest.raises(AccessDenied, match=f"knows no '{READER}' with this password") as raised:
        history()
    assert "another password" not in str(raised.value)


def test_a_reader_reads_and_is_told_what_is_not_allowed(sign_in: Callable[..., None]):
    sign_in(READER)
    (entry,) = history()
    assert entry.author == ADMIN
    with pytest.raises(AccessDenied, match=rf"'{READER}', .*, has no permission for this \(runs/log-parameter\)"):
        record(open_audit_log(versions.NAME), Entry(REFUSED, "mine", "2"))
    with pytest.raises(AccessDenied, match=r"\(runs/create\)"):
        run()
    with pytest.raises(RegistryError, match="there is no model 'Other'"):
        history("Other")


def test_runs_and_entries_have_the_name_of_who_is_signed_in(sign_in: Callable[..., None]):
    sign_in(ADMIN)
    with tracking.run("by the admin") as active:
        assert Entry(REFUSED, "mine", "1").author == ADMIN
    assert mlflow.get_run(active.info.run_id).data.tags[internals.USER_TAG] == ADMIN


def test_a_command_ends_with_one_line(address: str, sign_in: Callable[..., None]):
    for words in (["history"], ["train"]):
        done = subprocess.run(["catdog", *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"Error: sign in to {address}: set ")
