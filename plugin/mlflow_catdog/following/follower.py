"""The loop: it looks where each alias points, and replaces models until every deployment serves that version.

It remembers nothing that it needs: Docker has what serves, the alias is what should serve, the audit log has what failed.
So it may be killed, or run twice, at any point.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from catdog_pyfunc.pipeline.console import log
from mlflow_catdog.deployments import build, containers, recovery, replacement
from mlflow_catdog.deployments.docker_client import connected
from mlflow_catdog.deployments.errors import DeploymentExists, ModelFailed, Superseded
from mlflow_catdog.deployments.options import Options
from mlflow_catdog.following.outcomes import Followed, Outcomes
from mlflow_catdog.following.status import Statuses

if TYPE_CHECKING:
    from docker import DockerClient

_STOP_TIMEOUT_S = 8.0  # Docker kills a container 10 s after SIGTERM


class Follower:
    """Follows the aliases of all deployments of a Docker daemon that have `follow=true`."""

    def __init__(self, interval_s: float) -> None:
        """Does nothing yet.

        Args:
            interval_s: Seconds between two looks.
        """
        self.statuses = Statuses()
        self._interval_s = interval_s
        self._look_now, self._stopping = threading.Event(), threading.Event()
        self._due: dict[str, threading.Event] = {}  # by deployment
        self._threads: list[threading.Thread] = []  # one for each deployment: a build must not hold up the others
        self._outcomes: dict[str, Outcomes] = defaultdict(Outcomes)
        self._logged: dict[str, str] = {}

    def look_now(self) -> None:
        """Look without waiting for the interval to end; callable from any thread."""
        self._look_now.set()

    def run(self) -> None:
        """Follow until `KeyboardInterrupt`."""
        try:
            while True:
                self._start_looks()
                self._look_now.wait(self._interval_s)
                self._look_now.clear()
        finally:
            self._stopping.set()
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            for due in self._due.values():
                due.set()
            for thread in self._threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _start_looks(self) -> None:
        try:
            names = _followed_deployments()
        except Exception as failure:  # whatever happens, the next look may succeed
            self._log("", f"cannot look for deployments: {failure}")
            return
        self._log("", f"following: {', '.join(sorted(names)) or 'no deployment has follow=true'}")
        self.statuses.only(names)
        for name in names - set(self._due):
            self._due[name] = threading.Event()
            self._threads.append(threading.Thread(target=self._follow, args=[name], name=name, daemon=True))
            self._threads[-1].start()
        for name in names:
            self._due[name].set()

    def _follow(self, name: str) -> None:
        due = self._due[name]
        while due.wait() and not self._stopping.is_set():
            due.clear()
            try:
                with connected() as client:
                    if self._converge(client, name):
                        due.set()
            except DeploymentExists:
                self._log(name, "another command is changing it: waiting for that")
            except Superseded as moved:
                self._log(name, moved.message)
                due.set()
            except Exception as failure:  # the registry, Docker or the network is away: the next look may succeed
                self._log(name, f"trying again: {failure}")

    def _converge(self, client: DockerClient, name: str) -> bool:
        """Replace a deployment's model if its alias points elsewhere.

        Returns:
            Whether that was tried: then the alias may have moved meanwhile, and another look is due.
        """
        recovery.recover(client, name)
        serving = recovery.serving(client, name)
        uri = serving.labels[containers.MODEL_URI] if serving else ""
        alias = build.alias_of(uri)
        if serving is None or alias is None:  # it is being created, deleted or changed
            return False
        followed, outcomes = Followed(name, *alias), self._outcomes[name]
        current, wanted = serving.labels[containers.MODEL], build.exact_version(uri)
        self.statuses.looked(name, behind=current != wanted)
        if current == wanted:
            self._log(name, f"{wanted} serves, as {uri} says")
            outcomes.deployed(followed, _number(wanted))
            return False
        if outcomes.has_failed(followed, _number(wanted)):
            self._log(name, f"{wanted} failed, so {current} serves on until {uri} is moved")
            return False
        self._log(name, f"{uri} is {wanted} now, and {current} serves: replacing it")
        options, _ = Options.from_json(serving.labels[containers.OPTIONS])
        try:
            replacement.update(client, name, uri, wanted, options, still_wanted=lambda: build.exact_version(uri) == wanted)
        except ModelFailed as failure:
            self._log(name, failure.message)
            outcomes.failed(followed, _number(wanted), _number(current), failure.message)
        return True

    def _log(self, name: str, message: str) -> None:
        if self._logged.get(name) != message:
            self._logged[name] = message
            log(f"{name}: {message}" if name else message)


def _followed_deployments() -> set[str]:
    with connected() as client:
        models = client.containers.list(all=True, ignore_removed=True, filters={"label": f"{containers.ROLE}=model"})
        return {
            model.labels[containers.DEPLOYMENT]
            for model in models
            if Options.from_json(model.labels[containers.OPTIONS])[0].follow
        }


def _number(version: str) -> str:
    return build.registered_name(version)["version"]
