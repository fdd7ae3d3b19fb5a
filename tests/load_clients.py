"""Clients that keep a server busy and count its responses."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator

import requests

_LABELS = {"cat", "dog"}


@contextlib.contextmanager
def under_load(address: str, body: object, clients: int = 8, pause_s: float = 0.0) -> Iterator[Counter[str]]:
    """Send requests from threads until the block ends; every second client opens a new connection for each request.

    Args:
        address: Such as http://127.0.0.1:5001.
        body: Of each request.
        clients: How many.
        pause_s: Of each client between a response and its next request.

    Yields:
        Label, HTTP status or exception → how often; complete when the block has ended. Each client got a response before
        the block begins.
    """
    responses: Counter[str] = Counter()
    ended = threading.Event()
    first_responses = threading.Barrier(clients + 1)
    content = json.dumps(body)

    def client(keeps_connection: bool) -> None:
        session = requests.Session()
        responses[_response(session, address, content)] += 1
        first_responses.wait()
        while not ended.wait(pause_s):
            session = session if keeps_connection else requests.Session()
            responses[_response(session, address, content)] += 1

    threads = [threading.Thread(target=client, args=(index % 2 == 0,)) for index in range(clients)]
    for thread in threads:
        thread.start()
    try:
        first_responses.wait(timeout=120)
        yield responses
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def assert_none_lost(responses: Counter[str]) -> None:
    """There were responses, and every one was a prediction."""
    print(f"\n{dict(responses)}")
    assert responses.keys() <= _LABELS, responses
    assert responses.total() > 0


def _response(session: requests.Session, address: str, content: str) -> str:
    headers = {"Content-Type": "application/json"}
    try:
        response = session.post(f"{address}/invocations", data=content, headers=headers, timeout=30)
        return str(response.json()["predictions"][0]["label"]) if response.ok else f"HTTP {response.status_code}"
    except (requests.RequestException, ValueError, LookupError) as failure:
        return f"{type(failure).__name__}: {failure}"[:200]
