"""`python -m runtime.healthcheck picture SECONDS`: put the picture to this container's workers; `ping SECONDS`: do they live?"""

from __future__ import annotations

import http.client
import json
import sys
import time

from . import PORT, smoke_test

WRONG_ANSWER = 2


def main(what: str, timeout_s: float) -> int:
    """Ask once; workers that are still loading take the question when they are ready.

    Args:
        what: "picture" or "ping".
        timeout_s: How long to wait.

    Returns:
        Exit code: 0 for a good answer, `ANSWERED_WRONGLY`, or 1 for none.
    """
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=timeout_s)
    _connect(connection, time.monotonic() + timeout_s)
    if what == "ping":
        connection.request("GET", "/ping")
        return 0 if connection.getresponse().status == 200 else 1
    connection.request("POST", "/invocations", smoke_test.REQUEST.read_bytes(), {"Content-Type": "application/json"})
    response = connection.getresponse()
    try:
        print(json.dumps(smoke_test.check(response.status, response.read())))
    except smoke_test.WrongAnswer as wrong:
        print(wrong, file=sys.stderr)
        return WRONG_ANSWER
    return 0


def _connect(connection: http.client.HTTPConnection, deadline: float) -> None:
    while True:
        try:
            return connection.connect()
        except ConnectionRefusedError:  # so early that nothing listens yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
