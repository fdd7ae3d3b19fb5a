"""What the tests of deploy/tracking's backups share: stacks, and the two commands."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import IO

from tests.docker.conftest import COMPOSE, Stack, composed
from tests.docker.test_tracking import ADMIN, FILE, Team, signing_in, stored
from tests.project import free_port

TIMEOUT_S = 300
PASSWORD = secrets.token_urlsafe(12)  # the admin's, everywhere: a backup has the users, too


def settings() -> dict[str, str]:
    """Of a stack that shares nothing with another one."""
    ports = {name: str(free_port()) for name in ("CATDOG_TRACKING_PORT", "CATDOG_TRACKING_HTTP_PORT")}
    return {**ports, "CATDOG_DB_PASSWORD": f"geheim:/@%{secrets.token_urlsafe(12)}", "CATDOG_ADMIN_PASSWORD": PASSWORD}


def named(purpose: str) -> str:
    return f"catdog-test-{os.getpid()}-{purpose}"


@dataclass(frozen=True)
class Site:
    """One of several stacks: its name, variables, and commands."""

    purpose: str
    settings: Mapping[str, str]

    def running(self, up: str = "up -d") -> contextlib.AbstractContextManager[Stack]:
        return composed(FILE, named(self.purpose), self.settings, up)

    def team(self, stack: Stack, folder: Path) -> Team:
        """Who uses the server, once it responses."""
        ports = (int(self.settings[name]) for name in ("CATDOG_TRACKING_PORT", "CATDOG_TRACKING_HTTP_PORT"))
        team = Team(stack, folder, *ports, {ADMIN: PASSWORD})
        team.start()
        return team

    def start(self, service: str, *options: str, **streams: IO[bytes] | int) -> subprocess.Popen[bytes]:
        words = [*COMPOSE.split(), "-f", str(FILE), "-p", named(self.purpose), "run", "--rm", "-T", *options, service]
        return subprocess.Popen(words, env={**os.environ, **self.settings}, **streams)  # type: ignore[call-overload, no-any-return]

    def backup(self, to: Path) -> tuple[int, str]:
        """Exit status, and standard error."""
        with to.open("wb") as stream:
            return ended(self.start("backup", stdin=DEVNULL, stdout=stream, stderr=PIPE))

    def restore(self, file: Path, **changed: str) -> tuple[int, str]:
        site = Site(self.purpose, {**self.settings, **changed})
        with file.open("rb") as stream:
            return ended(site.start("restore", stdin=stream, stdout=PIPE, stderr=PIPE))


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, output = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, output.decode()


def everything(team: Team) -> dict[str, object]:
    """What is stored, with the artifacts' paths relative to where they are downloaded."""
    with signing_in(team) as client:
        found = stored(team, client, ADMIN)
    files: dict[tuple[str, str], bytes] = found["files"]  # type: ignore[assignment]
    folder = str(team.folder)
    return {**found, "files": {(run, path.removeprefix(folder)): content for (run, path), content in files.items()}}


def train_and_promote(team: Team, drawn: Path, weights: Path) -> None:
    """One version, all through the server."""
    train = ("-P", f"data={drawn}", "-P", f"weights={weights}", "-P", "image_size=96")
    promote = ("-e", "promote", "-P", "version=1", "-P", "min_accuracy=0", "-P", "reason=first")
    for arguments in (train, promote):
        done = team.project(ADMIN).run(*arguments)
        assert done.returncode == 0, done.stderr
