"""deploy/tracking: a team's MLflow on PostgreSQL behind Caddy, used by three users over TLS, and killed.

CATDOG_POSTGRES_IMAGE, CATDOG_CADDY_IMAGE and CATDOG_PYTHON_IMAGE may name other images to run and build on.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from docker import DockerClient

from tests.docker.conftest import COMPOSE, Stack, Target, composed
from tests.docs import steps, tables
from tests.project import MODEL, REPOSITORY, URI, Project, free_port, run_local, serving
from tests.request_formats import post
from tests.waiting import await_condition

if TYPE_CHECKING:
    from playwright.sync_api import Page

FILE = REPOSITORY / "deploy" / "tracking" / "compose.yaml"
FOLLOW = REPOSITORY / "deploy" / "follow" / "compose.yaml"
ROOT_CERTIFICATE = "/data/caddy/pki/authorities/local/root.crt"
CANDIDATES = "CatDogCandidates"
TRAINER, PROMOTER, READER, ADMIN = "tara", "paul", "rita", "admin"
SIGN_IN = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
UP_TIMEOUT_S = 120
WEBHOOKS = {
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
}


@dataclass(frozen=True)
class Team:
    """The stack, its address, and the passwords of its users."""

    stack: Stack
    folder: Path
    port: int
    http_port: int
    passwords: dict[str, str]

    @property
    def address(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def certificate(self) -> Path:
        return self.folder / "catdog-ca.crt"

    def start(self) -> float:
        """Start what isn't running, and trust the authority that it has; seconds until it answers."""
        self.stack.execute("up -d --wait")
        self.stack.execute(f"cp proxy:{ROOT_CERTIFICATE} {self.certificate}")
        return self.ready()

    def ready(self) -> float:
        return self.stack.await_up(f"http://localhost:{self.http_port}/health", UP_TIMEOUT_S, self.certificate)

    def project(self, user: str = "") -> Project:
        """The project as somebody uses it who needs no more than this; without a user, as somebody who isn't signed in."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING_")}
        environment |= {"MLFLOW_TRACKING_URI": self.address, "MLFLOW_TRACKING_SERVER_CERT_PATH": str(self.certificate)}
        environment |= {"XDG_CACHE_HOME": str(self.folder / "cache"), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
        if user:
            environment |= {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": self.passwords[user]}
        return Project(self.folder, environment)

    def request(self, user: str, method: str, path: str, **content: Any) -> requests.Response:
        """The response to a request; without a user, to nobody's."""
        auth = (user, self.passwords[user]) if user else None
        return requests.request(
            method, f"{self.address}{path}", auth=auth, verify=str(self.certificate), timeout=60, **content
        )


def succeed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, drawn: Path, weights: Path) -> Iterator[Team]:
    """The users of the documentation, of whom one trained a version, and another one promoted a copy of it."""
    folder, port, http_port = tmp_path_factory.mktemp("team"), free_port(), free_port()
    password = f"geheim:/@%{secrets.token_urlsafe(12)}"
    settings = {"CATDOG_DB_PASSWORD": password, "CATDOG_ADMIN_PASSWORD": password}
    settings |= {"CATDOG_TRACKING_PORT": str(port), "CATDOG_TRACKING_HTTP_PORT": str(http_port), **WEBHOOKS}
    with composed(FILE, f"catdog-test-{os.getpid()}-team", settings) as stack:
        team = Team(stack, folder, port, http_port, {ADMIN: password})
        print(f"\nup after {team.start():.1f} s")
        (users,) = (step.text for step in steps(REPOSITORY / "docs" / "team-server.md") if step.language == "python")
        created = succeed(team.project(ADMIN).command("python", "-c", users))
        team.passwords.update(line.split() for line in created.splitlines())
        train = ("-P", f"data={drawn}", "-P", f"weights={weights}", "-P", "image_size=96")
        succeed(team.project(TRAINER).run(*train, "-P", f"registered_model={CANDIDATES}"))
        copy = f"import mlflow; mlflow.MlflowClient().copy_model_version('models:/{CANDIDATES}/1', '{MODEL}')"
        succeed(team.project(PROMOTER).command("python", "-c", copy))
        promote = ("-e", "promote", "-P", "version=1", "-P", "min_accuracy=0", "-P", "reason=first")
        succeed(team.project(PROMOTER).run("--experiment-name", "promotions", *promote))
        yield team


@contextlib.contextmanager
def signing_in(team: Team) -> Iterator[Callable[[str], Any]]:
    """MLflow's client as one user after the other: it reads name and password from the environment."""
    with pytest.MonkeyPatch.context() as patch:

        def signed_in(user: str) -> Any:
            for name, value in team.project(user).environment.items():
                if name.startswith("MLFLOW_"):
                    patch.setenv(name, value)
            return team.project(user).client()

        yield signed_in


@pytest.fixture(scope="module")
def client(team: Team) -> Iterator[Callable[[str], Any]]:
    with signing_in(team) as signed_in:
        yield signed_in


def stored(team: Team, client: Callable[[str], Any], user: str = READER) -> dict[str, object]:
    """All that must never be lost, as a user sees it: runs with metrics, versions, aliases, and the bytes of artifacts."""
    reader = client(user)
    experiments = reader.search_experiments()
    runs = reader.search_runs([experiment.experiment_id for experiment in experiments])
    files = {}
    for run in runs:
        for entry in reader.list_artifacts(run.info.run_id):
            path = Path(reader.download_artifacts(run.info.run_id, entry.path, str(team.folder)))
            for file in path.rglob("*") if path.is_dir() else [path]:
                if file.is_file():
                    files[run.info.run_id, str(file)] = file.read_bytes()
    assert files
    return {
        "runs": {run.info.run_id: (run.info.status, run.data.metrics, run.data.params, run.data.tags) for run in runs},
        "versions": {version.version: version.tags for version in reader.search_model_versions(f"name='{MODEL}'")},
        "aliases": reader.get_registered_model(MODEL).aliases,
        "files": files,
    }


def served_row(team: Team, image_bytes: bytes, cwd: Path, user: str = READER) -> dict:
    with serving(team.project(user), "--env-manager", "local", cwd=cwd) as address:
        return post(address, {"dataframe_records": [{"image": base64.b64encode(image_bytes).decode()}]})[0]


def test_the_names_of_runs_versions_and_moves_are_those_of_who_signed_in(team: Team, client: Callable[[str], Any]):
    reader = client(READER)
    version = reader.get_model_version(MODEL, "1")
    run = reader.get_run(version.run_id)
    assert (run.data.tags["mlflow.user"], version.tags["author"], version.tags["stage.by"]) == (TRAINER, TRAINER, PROMOTER)
    experiment = reader.get_experiment(run.info.experiment_id)
    assert experiment.artifact_location.startswith("mlflow-artifacts:/")
    assert stored(team, client)["aliases"] == {"production": "1"}


def test_each_user_may_do_what_the_documentation_says(team: Team, client: Callable[[str], Any]):
    """A row for each call, a column for each user; also of those in the table of docs/team-server.md."""
    version = client(READER).get_model_version(MODEL, "1")
    log_run = client(READER).get_experiment_by_name(f"{MODEL} history").tags["catdog.audit_log"]
    files = client(READER).get_model_version_download_uri(MODEL, "1").removeprefix("mlflow-artifacts:/")
    mlflow, proxied = "/api/2.0/mlflow", f"/api/2.0/mlflow-artifacts/artifacts/{files}"
    create, tag = f"{mlflow}/model-versions/create", {"key": "tried", "value": "yes"}
    copied = {"source": f"models:/{CANDIDATES}/1", "run_id": version.run_id}
    alias = {"name": MODEL, "alias": "tried", "version": "1"}
    calls: list[tuple[str, str, str, dict[str, Any]]] = [
        ("read a run", "GET", f"{mlflow}/runs/get", {"params": {"run_id": version.run_id}}),
        ("download a model's file", "GET", f"{proxied}/MLmodel", {}),
        ("log to a run in `catdog`", "POST", f"{mlflow}/runs/set-tag", {"json": {**tag, "run_id": version.run_id}}),
        ("write a model's file in `catdog`", "PUT", f"{proxied}/tried", {"data": b"x"}),
        ("add a version to `CatDogCandidates`", "POST", create, {"json": {**copied, "name": CANDIDATES}}),
        ("add a version to `CatDogClassifier`", "POST", create, {"json": {**copied, "name": MODEL}}),
        ("set an alias of `CatDogClassifier`", "POST", f"{mlflow}/registered-models/alias", {"json": alias}),
        ("remove it", "DELETE", f"{mlflow}/registered-models/alias", {"json": {"name": MODEL, "alias": "tried"}}),
        ("write to the audit log", "POST", f"{mlflow}/runs/set-tag", {"json": {**tag, "run_id": log_run}}),
        ("list users", "GET", f"{mlflow}/users/list", {}),
        ("create users", "POST", f"{mlflow}/users/create", {"json": {"username": "new", "password": "twelve or more"}}),
    ]
    columns = ("", READER, TRAINER, PROMOTER, ADMIN)
    measured = [
        [name.replace("`", ""), *(str(team.request(user, method, path, **content).status_code) for user in columns)]
        for name, method, path, content in calls
    ]
    print()
    for name, *statuses in measured:
        print(f"| {name} | {' | '.join(statuses)} |")
    (documented,) = [table for table in tables("team-server.md") if table[0][0] == "call"]
    assert measured == documented[1:]


def test_a_trainer_cannot_move_production_and_is_told_why(team: Team):
    promote = ("promote", "--version", "1", "--alias", "staging", "--min-accuracy", "0")
    done = team.project(TRAINER).command("catdog", *promote, MLFLOW_EXPERIMENT_NAME="catdog")
    assert done.returncode == 1
    assert f"'{TRAINER}', who is signed in to {team.address}, has no permission for this (runs/log-parameter)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("catdog", "history"),
        ("mlflow", "run", ".", "--env-manager", "local", "-e", "history"),  # MLflow's own message, and Caddy's text
        ("mlflow", "models", "serve", "-m", URI, "--env-manager", "local"),
        ("mlflow", "deployments", "create", "-t", "catdog", "--name", "never", "-m", URI),
    ],
    ids=" ".join,
)
def test_a_command_without_a_name_says_what_to_set(words: tuple[str, ...], team: Team):
    done = team.project().command(*words)
    assert done.returncode != 0
    assert SIGN_IN in done.stderr.splitlines()[-1]


def test_a_wrong_password_and_an_unknown_authority_are_named(team: Team):
    reader = team.project(READER)
    done = reader.command("catdog", "history", MLFLOW_TRACKING_PASSWORD="another one")
    assert f"{team.address} knows no '{READER}' with this password: check {SIGN_IN}" in done.stderr
    assert "another one" not in done.stderr + done.stdout
    environment = {name: value for name, value in reader.environment.items() if name != "MLFLOW_TRACKING_SERVER_CERT_PATH"}
    done = Project(reader.folder, environment).command("catdog", "history", timeout_s=60)
    assert f"the certificate of {team.address} is not trusted here: set MLFLOW_TRACKING_SERVER_CERT_PATH" in done.stderr


def test_http_leads_to_https_where_nobody_gets_in_without_a_name(team: Team):
    for path, status in (("/health?x=1", 200), ("/", 401), ("/version", 401), ("/api/2.0/mlflow/users/current", 401)):
        redirect = requests.get(f"http://localhost:{team.http_port}{path}", allow_redirects=False, timeout=10)
        assert (redirect.status_code, redirect.headers["Location"]) == (308, f"{team.address}{path}")
        answer = requests.get(redirect.headers["Location"], verify=str(team.certificate), timeout=10)
        assert answer.status_code == status
        assert (SIGN_IN in answer.text) == (status == 401)
        assert ("WWW-Authenticate" in answer.headers) == (status == 401)  # which lets a browser ask


def test_only_caddy_is_published_and_all_are_healthy_and_locked_down(team: Team, docker_client: DockerClient):
    containers = {name: docker_client.containers.get(team.stack.container(name)) for name in ("server", "database", "proxy")}
    assert {container.attrs["State"]["Health"]["Status"] for container in containers.values()} == {"healthy"}
    published = {
        (name, port, binding["HostIp"])
        for name, container in containers.items()
        for port, bindings in container.attrs["NetworkSettings"]["Ports"].items()
        for binding in bindings or ()
    }
    assert published == {("proxy", "443/tcp", "127.0.0.1"), ("proxy", "80/tcp", "127.0.0.1")}
    assert containers["server"].exec_run("id -u").output.strip() == b"10001"
    for name, capabilities in (("server", 0), ("proxy", 1 << 10)):  # CAP_NET_BIND_SERVICE
        assert containers[name].exec_run("touch /usr/x").exit_code != 0
        status = containers[name].exec_run("cat /proc/1/status").output.decode()
        assert f"CapEff:\t{capabilities:016x}" in status
    assert not set(containers["proxy"].attrs["NetworkSettings"]["Networks"]) & set(
        containers["database"].attrs["NetworkSettings"]["Networks"]
    )


def test_a_reader_may_deploy(team: Team, tmp_path: Path):
    with run_local(team.project(READER), tmp_path / "log", "-m", URI, "-C", "workers=1") as deployment:
        assert f"models:/{MODEL}/1 serves at" in deployment.log.read_text()


def test_a_move_of_the_alias_goes_live_and_is_recorded(
    team: Team, client: Callable[[str], Any], target: Target, tmp_path: Path
):
    """Through `deploy/follow`, signed in as the promoter and woken by MLflow's webhook."""
    (tmp_path / "webhook").write_text(secret := secrets.token_hex(16))
    hook = {"events": ["model_version_alias.created"], "secret": secret}
    client(ADMIN).create_webhook("catdog-follow", "http://follow:8090/webhook", **hook)
    name, port = target.new_name(), free_port()
    create = ("create", "--name", name, "-m", URI, "-C", "follow=true", "-C", f"port={port}")
    succeed(Target(team.project(READER)).call(*create))
    files = ("-f", str(FILE), "-f", str(FOLLOW), "-p", team.stack.project)
    settings = {"CATDOG_WEBHOOK_SECRET_FILE": str(tmp_path / "webhook"), "CATDOG_FOLLOW_PORT": str(free_port())}
    up = ("docker", "compose", *files, "up", "-d", "--build", "--wait", "follow")
    succeed(team.project(PROMOTER).command(*up, **settings))
    promoter = client(PROMOTER)
    promoter.copy_model_version(f"models:/{CANDIDATES}/1", MODEL)
    reader = team.project(READER)
    for version, previous in (("2", "1"), ("1", "2")):
        moved = time.monotonic()
        promoter.set_registered_model_alias(MODEL, "production", version)
        await_match(rf'version="{version}"', lambda: requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text)
        print(f"\nversion {version} answered {time.monotonic() - moved:.1f} s after the alias moved")
        outcome = rf"{PROMOTER} +deployed +production +{previous} +{version} +deployment {name}$"
        await_match(outcome, lambda: reader.command("catdog", "history").stdout)


def await_match(pattern: str, read: Callable[[], str]) -> None:
    await_condition(lambda: re.search(pattern, read(), re.MULTILINE), timeout_s=180)


@pytest.mark.browser
def test_the_ui_is_there_for_who_signs_in(team: Team, tmp_path: Path):
    binary = os.environ.get("CATDOG_CHROMIUM")
    if not binary:
        pytest.skip("CATDOG_CHROMIUM is not set: it names a Chromium binary for the tests of the UI")
    from playwright.sync_api import expect, sync_playwright

    screenshots = Path(os.environ.get("CATDOG_SCREENSHOTS", tmp_path))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox", "--disable-gpu"])
        stranger = browser.new_page(ignore_https_errors=True, http_credentials={"username": READER, "password": "a guess"})
        response = stranger.goto(f"{team.address}/")
        assert response is not None
        assert response.status == 401
        expect(stranger.get_by_text(SIGN_IN)).to_be_visible()
        credentials: Any = {"username": READER, "password": team.passwords[READER]}
        page: Page = browser.new_page(ignore_https_errors=True, http_credentials=credentials)
        page.set_default_timeout(60_000)
        page.goto(f"{team.address}/#/models/{MODEL}")
        expect(page.get_by_text(f"by {PROMOTER}").first).to_be_visible(timeout=60_000)
        expect(page.get_by_text(READER, exact=True).last).to_be_visible()
        page.screenshot(path=screenshots / "team-model.png")
        page.goto(f"{team.address}/#/experiments")
        expect(page.get_by_role("link", name="promotions", exact=True)).to_be_visible(timeout=60_000)
        page.screenshot(path=screenshots / "team-experiments.png")
        browser.close()


def test_killed_containers_come_back_with_nothing_lost(
    team: Team, client: Callable[[str], Any], docker_client: DockerClient, drawn: Path, tmp_path: Path
):
    image_bytes = (drawn / "test" / "cat" / "cat-0001.jpg").read_bytes()
    before, row = stored(team, client), served_row(team, image_bytes, tmp_path)
    for killed in (["server"], ["database"], ["proxy"], ["server", "database", "proxy"]):
        for service in killed:
            docker_client.containers.get(team.stack.container(service)).kill()
        team.stack.execute("up -d")
        print(f"\n{'+'.join(killed)}: back after {team.ready():.1f} s")
        assert stored(team, client) == before
    assert served_row(team, image_bytes, tmp_path) == row


def test_volumes_keep_everything_when_containers_are_removed(team: Team, client: Callable[[str], Any]):
    before = stored(team, client)
    team.stack.execute("down")
    team.stack.execute("up -d")
    team.ready()
    assert stored(team, client) == before
    done = team.project(READER).command("catdog", "history")
    assert re.search(rf"{PROMOTER} +promoted +production +- +1 .* first$", succeed(done), re.MULTILINE), done.stdout


@pytest.mark.parametrize("missing", ["CATDOG_DB_PASSWORD", "CATDOG_ADMIN_PASSWORD"])
def test_without_a_password_nothing_starts(missing: str):
    environment = {**os.environ, "CATDOG_DB_PASSWORD": "x", "CATDOG_ADMIN_PASSWORD": "x"}
    del environment[missing]
    words = [*COMPOSE.split(), "-f", str(FILE), "-p", f"catdog-test-{os.getpid()}-none", "up", "-d"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert missing in done.stderr
    assert "set it to a secret" in done.stderr
