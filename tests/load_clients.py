"""Clients that ask a server over and over, and count what they get."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator

import requests


@contextlib.contextmanager
def asking(address: str, body: object, number: int = 8) -> Iterator[Counter[str]]:
    """Ask from `number` threads until the block ends; every second one makes a new connection for each request.

    Args:
        address: As http://127.0.0.1:5001.
        body: Of each request.
        number: Of clients.

    Yields:
        What was answered (a label, an HTTP status or an exception) → how often; complete when the block has ended.
    """
    answers: Counter[str] = Counter()
    ended = threading.Event()
    content = json.dumps(body)

    def client(keeps: bool) -> None:
        session = requests.Session()
        while not ended.is_set():
            session = session if keeps else requests.Session()
            answers[_answer(session, address, content)] += 1

    threads = [threading.Thread(target=client, args=(place % 2 == 0,)) for place in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _answer(session: requests.Session, address: str, content: str) -> str:
    headers = {"Content-Type": "application/json"}
    try:
        answer = session.post(f"{address}/invocations", data=content, headers=headers, timeout=30)
        return str(answer.json()["predictions"][0]["label"]) if answer.ok else f"HTTP {answer.status_code}"
    except (requests.RequestException, ValueError, LookupError) as failure:
        return f"{type(failure).__name__}: {failure}"[:200]
