"""Checks this container's workers: `python -m runtime.healthcheck ping SECONDS`, or `… smoke-test SECONDS`."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from pathlib import Path

from . import PING, PORT, smoke_test
from .settings import listen_address, read_keys

SMOKE_TEST_FAILED = 2


def main(check: str, timeout_s: float, port: int) -> int:
    """Send one request; workers that are still loading answer it when they are ready.

    Args:
        check: "ping", or "smoke-test", which prints the prediction as JSON.
        timeout_s: How long to wait.
        port: Of the workers, on 127.0.0.1.

    Returns:
        Exit code: 0 if all is well, `SMOKE_TEST_FAILED`, or 1 if there was no response.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    _connect(connection, time.monotonic() + timeout_s)
    if check == "ping":
        connection.request("GET", PING)
        return 0 if connection.getresponse().status == 200 else 1
    headers = {"Content-Type": "application/json"}
    if keys := os.environ.get("CATDOG_API_KEYS_FILE"):
        headers["X-API-Key"] = read_keys(Path(keys))[0]
    connection.request("POST", "/invocations", smoke_test.REQUEST.read_bytes(), headers)
    response = connection.getresponse()
    try:
        print(json.dumps(smoke_test.check(response.status, response.read())))
    except smoke_test.SmokeTestFailed as failure:
        print(failure, file=sys.stderr)
        return SMOKE_TEST_FAILED
    return 0


def _connect(connection: http.client.HTTPConnection, deadline: float) -> None:
    while True:
        try:
            return connection.connect()
        except ConnectionRefusedError:  # the supervisor does not listen yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    _, configured = listen_address(os.environ)
    sys.exit(main(sys.argv[1], float(sys.argv[2]), PORT if "CATDOG_LISTENER" in os.environ else configured))
