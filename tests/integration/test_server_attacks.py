"""Attacks on a server with two workers, while an honest client goes on asking: it always gets its prediction."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import requests

from tests.integration.attacks import ATTACKS
from tests.integration.talks import CLOSED, MAX_BODY, TIMEOUT_S, Talk
from tests.project import URI, Deployment, Project, run_local
from tests.waiting import await_condition

TALK_S = 120  # by then the server has ended every connection
PEAK = 700e6  # bytes that two workers may take during an attack, beyond what they had

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deployment(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    limits = {"workers": 2, "max_body_mb": MAX_BODY // 2**20, "request_timeout_s": TIMEOUT_S}
    words = [word for name, value in limits.items() for word in ("-C", f"{name}={value}")]
    with run_local(project, tmp_path_factory.mktemp("attacked") / "log", "-m", URI, *words) as deployment:
        yield deployment


@dataclass
class Honest:
    """What a client got that sent an image again and again, each time on a new connection."""

    answers: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    longest_s: float = 0.0
    peak: int = 0


@contextlib.contextmanager
def honest_client(deployment: Deployment, image: bytes) -> Iterator[Honest]:
    seen, ended = Honest(), threading.Event()

    def ask() -> None:
        while not ended.wait(0.05) or seen.answers.total() < 3:
            started = time.monotonic()
            label, retries = answer(deployment.address, image)
            seen.answers[label] += 1
            seen.retries += retries
            seen.longest_s = max(seen.longest_s, time.monotonic() - started)
            seen.peak = max(seen.peak, memory(deployment))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def answer(address: str, image: bytes) -> tuple[str, int]:
    """The image's label, or what came instead; how often the server was too busy, and was asked again when it said."""
    for retries in range(30):
        try:
            response = requests.post(f"{address}/predict", data=image, headers={"Content-Type": "image/jpeg"}, timeout=60)
        except requests.RequestException as failure:
            return str(failure), retries
        if response.status_code != 429:
            return str(response.json()["predictions"][0]["label"]) if response.ok else response.text, retries
        time.sleep(int(response.headers["Retry-After"]))
    return "too busy", 30


def memory(deployment: Deployment) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in deployment.workers())


def ports(pid: int) -> set[int]:
    """The other ends of a worker's connections."""
    return {connection.raddr.port for connection in psutil.Process(pid).net_connections("tcp") if connection.raddr}


async def responses(deployment: Deployment, talk: Talk) -> list[tuple[int, bytes]]:
    """Statuses and bodies that one connection gets until the server closes it."""
    host, port = deployment.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    own_port = writer.get_extra_info("sockname")[1]
    received = bytearray()

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            for piece in talk.pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(talk.pause_s)
        if talk.leaves:
            writer.transport.abort()

    async def receive() -> None:
        while not talk.reads and any(own_port in ports(pid) for pid in deployment.workers()):
            await asyncio.sleep(5)
        while talk.reads and (chunk := await reader.read(2**16)):
            received.extend(chunk)

    if not talk.reads:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
    sending = asyncio.create_task(send())
    try:
        await asyncio.wait_for(receive(), TALK_S)
    except ConnectionError:  # it closed the connection while we were sending
        pass
    finally:
        sending.cancel()
        writer.transport.abort()
    return parse(bytes(received).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""))


def parse(received: bytes) -> list[tuple[int, bytes]]:
    """Split what a connection received into responses; a truncated one does not count."""
    found = []
    while received:
        start, end, rest = received.partition(b"\r\n\r\n")
        length = int(re.search(rb"(?i)\ncontent-length: (\d+)", start)[1])  # type: ignore[index]
        if not end or len(rest) < length:
            break
        found.append((int(start.split()[1]), rest[:length]))
        received = rest[length:]
    return found or [(CLOSED, b"")]


async def attack(deployment: Deployment, name: str) -> Counter[int]:
    """Open all connections of an attack; how often each status came."""
    statuses: Counter[int] = Counter()
    conversations = [responses(deployment, talk) for talk in ATTACKS[name].talks()]
    for found in await asyncio.gather(*conversations):
        for status, body in found:
            statuses[status] += 1
            assert not re.search(rb"Traceback|stack_trace|\.py", body) or b"swagger" in body, body[:2000]
            assert status < 400 or json.loads(body).keys() == {"error"}, (status, body[:500])
    return statuses


@pytest.fixture(scope="module")
def image(files: list[Path], deployment: Deployment) -> bytes:
    """A valid image; every way to send one has been used, so that the workers have loaded all that they need."""
    content, address = files[0].read_bytes(), deployment.address
    for _ in range(20):
        assert answer(address, content)[0] in ("cat", "dog")
        requests.post(f"{address}/predict", files={"f": content}, timeout=60)
        requests.post(f"{address}/predict", data=bytes(MAX_BODY), timeout=60)
        requests.post(f"{address}/predict?explain=true", data=content, timeout=60)
    return content


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_harms_nobody(name: str, deployment: Deployment, image: bytes):
    before, workers, logged = memory(deployment), deployment.workers(), len(deployment.log.read_bytes())
    started = time.monotonic()
    with honest_client(deployment, image) as honest:
        statuses = asyncio.run(attack(deployment, name))
    seconds = time.monotonic() - started
    with contextlib.suppress(AssertionError):
        await_condition(lambda: memory(deployment) <= 1.1 * before, 20)
    after, said = memory(deployment), deployment.log.read_bytes()[logged:].decode()
    row = (
        name,
        ", ".join(f"{count}x {status or 'closed'}" for status, count in statuses.items()),
        f"{honest.answers.total()}, {honest.retries} retries, at most {honest.longest_s:.2f} s",
        f"{before / 1e6:.0f} → {honest.peak / 1e6:.0f} → {after / 1e6:.0f}",
    )
    print(f"\n| {' | '.join(row)} | {seconds:.0f} s |")
    assert statuses.keys() <= set(ATTACKS[name].expected)
    assert honest.answers.keys() <= {"cat", "dog"}
    assert deployment.workers() == workers
    assert not re.search("Traceback|Exception|never awaited", said), said[-3000:]
    assert honest.peak - before < PEAK
    assert after <= 1.1 * before
