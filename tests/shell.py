"""A shell that runs commands one after the other, as a reader of the documentation would type them."""

from __future__ import annotations

import contextlib
import queue
import re
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import requests

from tests.waiting import await_condition

TIMEOUT_S = 600


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class Shell:
    """A bash process that keeps its variables between commands, with at most one server running beside it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._server: int | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._shell = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reading = threading.Thread(target=self._read_output, daemon=True)
        self._reading.start()

    def run(self, command: str) -> str:
        """Run a command, which must succeed, and return its output."""
        output, code = self._execute(command)
        assert code == 0, f"{command} ended with {code}:\n{output[-3000:]}"
        return output

    def serve(self, command: str) -> None:
        """Start a server in place of the last one and wait until it is healthy."""
        self.stop_server()
        given = re.search(r"(?:-p|--port) (\d+)", command)
        port = int(given[1]) if given else 5001
        await_condition(lambda: is_free(port))  # the last one's workers may end after it, and would answer for this one
        output, _ = self._execute(f"setsid {command} >server.log 2>&1 </dev/null & echo $!")
        self._server = int(output.split()[-1])
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                    return
            time.sleep(0.2)
        log = (self.folder / "server.log").read_text()
        raise AssertionError(f"{command} was not healthy within {TIMEOUT_S} s; its log ends:\n{log[-3000:]}")

    def stop_server(self) -> None:
        """Stop the server, if any, and wait until it has ended."""
        if self._server is not None:
            self._execute(f"kill -TERM -- -{self._server}; wait {self._server}")
            self._server = None

    def close(self) -> None:
        """Stop the server and the shell."""
        self.stop_server()
        self._shell.kill()
        self._shell.wait()
        self._reading.join()
        for pipe in (self._shell.stdin, self._shell.stdout):
            assert pipe is not None
            pipe.close()

    def _execute(self, command: str) -> tuple[str, int]:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{command}\nprintf '\\nEXIT CODE %d\\n' $?\n")
        self._shell.stdin.flush()
        output = ""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{command} took longer than {TIMEOUT_S} s:\n{output[-3000:]}") from None
            if ended := re.match(r"EXIT CODE (\d+)", line):
                return output, int(ended[1])
            output += line

    def _read_output(self) -> None:
        assert self._shell.stdout is not None
        for line in self._shell.stdout:
            self._lines.put(line)
