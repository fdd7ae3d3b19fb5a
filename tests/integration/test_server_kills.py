"""Mixed load while workers are killed at random: only requests on connections that a killed worker held may fail."""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.integration.talks import JSON, V1, V2
from tests.project import Deployment
from tests.waiting import await_condition

SOAK_S = float(os.environ.get("CATDOG_SOAK_S", "10"))
CLIENTS = 8
NOTICED_S = 5.0  # after a kill, each client has noticed by then that its connection is gone

pytestmark = pytest.mark.slow
Request = tuple[str, bytes, str, int]  # path, body, its type, expected status


def mixed_requests(image: bytes) -> list[Request]:
    """Every contract once, and what each must refuse."""
    text = base64.b64encode(image).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    form = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + image + b"\r\n--b--\r\n"
    return [
        ("/predict", image, "image/jpeg", 200),
        ("/predict?explain=true", image, "image/jpeg", 200),
        ("/predict", form, "multipart/form-data; boundary=b", 200),
        ("/predict", json.dumps({"images": [text] * 5}).encode(), JSON, 200),
        ("/invocations", image, "image/jpeg", 200),
        ("/invocations", json.dumps({"inputs": [text]}).encode(), JSON, 200),
        (V1, json.dumps({"instances": [{"b64": text}]}).encode(), JSON, 200),
        (V2, json.dumps({"inputs": [tensor]}).encode(), JSON, 200),
        ("/", image, "image/jpeg", 200),
        ("/predict", b"no image", "image/jpeg", 200),
        ("/predict", b"{", JSON, 400),
        ("/nothing", image, "image/jpeg", 404),
    ]


class Client(threading.Thread):
    """Sends requests until the end, on one connection or each on its own.

    Attributes:
        responses: Status, or "failed" → how often.
        failures: Time, own port and reason of each that failed.
    """

    def __init__(self, address: str, requests: Sequence[Request], number: int, ended: threading.Event) -> None:
        super().__init__()
        self.responses: Counter[str] = Counter()
        self.failures: list[tuple[float, int, str]] = []
        self._host, self._requests, self._ended = address.removeprefix("http://"), requests, ended
        self._keeps_connection, self._random = number % 2 == 0, random.Random(number)

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._host, timeout=60)
        while not self._ended.is_set():
            path, body, kind, expected = self._random.choice(self._requests)
            port = 0
            try:
                if connection.sock is None:
                    connection.connect()
                port = connection.sock.getsockname()[1]
                connection.request("POST", path, body, {"Content-Type": kind})
                response = connection.getresponse()
                response.read()
                wrong = "" if response.status == expected else f"{path}: HTTP {response.status}"
            except (OSError, http.client.HTTPException) as failure:
                wrong = f"{path}: {type(failure).__name__}"
            self.responses["failed" if wrong else str(expected)] += 1
            if wrong:
                self.failures.append((time.monotonic(), port, wrong))
            if wrong or not self._keeps_connection:
                connection.close()
        connection.close()


def kill(pid: int) -> tuple[float, set[int]]:
    """Kill a worker; when, and the ports of the clients whose connections it held."""
    os.kill(pid, signal.SIGSTOP)  # it accepts no more
    ports = {connection.raddr.port for connection in psutil.Process(pid).net_connections("tcp") if connection.raddr}
    os.kill(pid, signal.SIGKILL)
    return time.monotonic(), ports


def test_a_killed_worker_costs_only_the_requests_that_it_held(deployment: Deployment, files: list[Path]):
    requests, ended, kills = mixed_requests(files[0].read_bytes()), threading.Event(), []
    clients = [Client(deployment.address, requests, number, ended) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    chance, end = random.Random(0), time.monotonic() + SOAK_S

    def served() -> int:
        return sum(client.responses.total() - client.responses["failed"] for client in clients)

    try:
        while time.monotonic() < end:
            before = served()
            time.sleep(chance.uniform(0.2, 4))
            await_condition(lambda before=before: served() > before)  # on a busy machine, no worker might ever have started
            await_condition(deployment.workers)
            kills.append(kill(chance.choice(sorted(deployment.workers()))))  # even one that is still loading
    finally:
        ended.set()
        for client in clients:
            client.join()
    responses = sum((client.responses for client in clients), Counter[str]())
    failures = [failure for client in clients for failure in client.failures]
    reasons = dict(Counter(reason for _, _, reason in failures))
    held = sum(len(ports) for _, ports in kills)
    print(f"\n{SOAK_S:.0f} s, {len(kills)} kills of workers with {held} connections: {dict(responses)}; failed: {reasons}")
    unexplained = [
        failure
        for failure in failures
        if not any(failure[1] in ports and -1 < failure[0] - killed < NOTICED_S for killed, ports in kills)
    ]
    assert not unexplained
    assert responses["200"] > 10 * len(failures)
    await_condition(lambda: len(deployment.workers()) == 2)
