"""Thousands of corrupt images sent to a real server: each gives a row, no request fails, and memory does not grow."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import psutil
import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.integration.corrupt_images import bombs, corrupt, originals

EXAMPLES, CELLS = 260, 8  # requests, and the least number of images in each
ORIGINALS: list[bytes] = []


@pytest.fixture(scope="module", autouse=True)
def valid_files(drawn: Path) -> None:
    ORIGINALS[:] = originals(drawn)


def as_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


cells = st.one_of(
    corrupt(ORIGINALS).map(as_text),
    corrupt(ORIGINALS).map(as_text),
    corrupt(ORIGINALS).map(as_text),
    st.binary(max_size=2000).map(as_text),
    st.text(max_size=200),
    st.text("ABCabc+/-_= \r\n", max_size=200),
)


def post(address: str, given: list[str], request_format: str) -> list[dict]:
    body = {"inputs": given} if request_format == "inputs" else {"dataframe_records": [{"image": cell} for cell in given]}
    response = requests.post(f"{address}/invocations", json=body, timeout=60)
    assert response.status_code == 200, (response.text[:500], json.dumps(body)[:500])
    assert "Traceback" not in response.text
    assert "stack_trace" not in response.text
    return list(response.json()["predictions"])


def server_process(address: str) -> psutil.Process:
    """The process that holds the model: the largest of those started for this port."""
    port = address.rsplit(":", 1)[1]
    found = [process for process in psutil.process_iter(["cmdline"]) if port in (process.info["cmdline"] or [])]
    return max(found, key=lambda process: process.memory_info().rss)


def test_no_input_makes_the_server_fail_or_grow(address: str, drawn: Path):
    photo = as_text((drawn / "test" / "cat" / "cat-0001.jpg").read_bytes())
    expected = post(address, [photo], "inputs")
    process, counts = server_process(address), []

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(cells, min_size=CELLS, max_size=CELLS + 4), st.sampled_from(["inputs", "records"]))
    def fuzz(given: list[str], request_format: str) -> None:
        rows = post(address, given, request_format)
        assert len(rows) == len(given)
        for number, row in enumerate(rows):
            assert (row["label"] is None) == (row["error"] is not None)
            assert row["error"] is None or row["error"].startswith(f"image {number} ")
        counts.append(len(given))

    fuzz()  # during the first round, buffers grow to their final size
    before, count = process.memory_info().rss, sum(counts)
    assert count >= 2000
    fuzz()
    assert post(address, [photo], "inputs") == expected
    after = process.memory_info().rss
    print(f"{sum(counts)} inputs; {before / 1e6:.0f} MB before the second {count}, {after / 1e6:.0f} MB after")
    assert after <= 1.1 * before


def test_decompression_bombs_cost_no_memory(address: str):
    process = server_process(address)
    before = process.memory_info().rss
    for row in post(address, [as_text(content) for content in bombs()], "records"):
        assert row["label"] is None
        assert "pixels" in row["error"]
    assert process.memory_info().rss - before < 50e6
