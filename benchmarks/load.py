"""Load on a server, by wrk: a compiled load generator takes hardly any CPU from the server that is measured."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = """
local files, requests, next_request = {%s}, {}, 0
wrk.method = "POST"
wrk.headers["Content-Type"] = %s
init = function()
  for k, name in ipairs(files) do
    local file = assert(io.open(name, "rb"))
    requests[k] = wrk.format(nil, %s, nil, file:read("*a"))
    file:close()
  end
end
request = function()
  next_request = next_request %% #requests + 1
  return requests[next_request]
end
done = function(summary, latency)
  local e = summary.errors
  print(string.format('RESULT {"requests": %%d, "seconds": %%f, "p50_ms": %%f, "p99_ms": %%f, "errors": %%d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """A server under load: requests per second, latencies in milliseconds, number of failed requests."""

    images_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int


def check_wrk() -> None:
    """Exit with installation advice if wrk is missing."""
    if shutil.which("wrk") is None:
        raise SystemExit("this benchmark needs wrk: install the package wrk (Debian, Ubuntu, Homebrew)")


def apply_load(
    url: str, path: str, content_type: str, bodies: Sequence[bytes], *, clients: int, seconds: float, scratch: Path
) -> Load:
    """Keep a number of connections busy, each with one request at a time.

    Args:
        url: The server's address.
        path: The path to post to.
        content_type: Content type of the bodies.
        bodies: Request bodies, sent in turn.
        clients: Number of connections.
        seconds: Duration, after two seconds of warm-up.
        scratch: A folder for the bodies' files.

    Returns:
        Throughput and latencies over the whole duration.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    names = []
    for number, body in enumerate(bodies):
        name = scratch / f"body-{number}"
        name.write_bytes(body)
        names.append(json.dumps(str(name)))
    script = scratch / "load.lua"
    script.write_text(_SCRIPT % (", ".join(names), json.dumps(content_type), json.dumps(path)))
    command = ["wrk", "-t1", f"-c{clients}", "--timeout", "60s", "-s", str(script), url]
    subprocess.run([*command, "-d2s"], check=True, capture_output=True, timeout=120)
    output = subprocess.run([*command, f"-d{seconds:g}s"], check=True, capture_output=True, text=True, timeout=seconds + 120)
    result = json.loads(next(line for line in output.stdout.splitlines() if line.startswith("RESULT "))[7:])
    return Load(result["requests"] / result["seconds"], result["p50_ms"], result["p99_ms"], int(result["errors"]))
