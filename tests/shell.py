"""A shell for tests that do what a reader does."""

from __future__ import annotations

import contextlib
import queue
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import requests

TIMEOUT_S = 600


class Shell:
    """A shell that goes on from line to line, as a reader's would; servers run beside it."""

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
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self, text: str) -> str:
        """What it prints; fails if it fails."""
        printed, code = self._say(text)
        assert code == 0, f"{text} ended with {code}:\n{printed[-3000:]}"
        return printed

    def serve(self, command: str) -> None:
        """Start a server and wait until it answers."""
        self.stop_server()
        printed, _ = self._say(f"setsid {command} >server.log 2>&1 </dev/null & echo $!")
        self._server = int(printed.split()[-1])
        port = re.search(r"(?:-p|--port) (\d+)", command)[1]  # type: ignore[index]
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                    return
            time.sleep(0.2)
        raise AssertionError(f"{command} didn't answer:\n{(self.folder / 'server.log').read_text()[-3000:]}")

    def stop_server(self) -> None:
        if self._server is not None:
            self._say(f"kill -TERM -- -{self._server}; wait {self._server}")
            self._server = None

    def close(self) -> None:
        self.stop_server()
        self._shell.kill()
        self._shell.wait()

    def _say(self, text: str) -> tuple[str, int]:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{text}\nprintf '\\nTHE END %d\\n' $?\n")
        self._shell.stdin.flush()
        printed = ""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{text} took longer than {TIMEOUT_S} s:\n{printed[-3000:]}") from None
            if ended := re.match(r"THE END (\d+)", line):
                return printed, int(ended[1])
            printed += line

    def _listen(self) -> None:
        assert self._shell.stdout is not None
        for line in self._shell.stdout:
            self._lines.put(line)
