"""Attacks on a server: what each sends, and what it may get."""

from __future__ import annotations

import itertools
import json
import struct
import zlib

from tests.integration.corrupt_images import bombs
from tests.integration.talks import (
    CLOSED,
    IMAGE,
    MAX_BODY,
    RAW,
    Attack,
    Talk,
    connections,
    drips,
    each,
    endless,
    everywhere,
    form,
    gzipped,
    head,
    infer,
    many,
    nested,
    post,
    tensor,
)

_PATHS = [
    *("//predict", "/predict/", "/..%2f..%2fetc/passwd", "/docs/static/../../x", "/docs/static/..%2f..%2f..%2fetc%2fpasswd"),
    *(
        "/docs/static/%00",
        "/docs/static//etc/passwd",
        "/docs/static/" + "a/" * 5000,
        "/" + "a" * 40_000,
        "/%",
        "/%zz",
        "/%c0%ae",
    ),
    *("/%00", "/predict%00.jpg", "/predict;x=1", "http://evil.example/docs/static/../../x", "http://evil.example", "*", ""),
    *(
        "http://[",
        "/v2/models/../../predict",
        "/v1/models/x%2fy:predict",
        "/nothing?\xff",
        "/predict/?\xff",
        "/\xff",
        "/\\..\\x",
    ),
]
_HEADERS = [
    *("Host: [", "Host: x:99999999", "Content-Length: -1", "Content-Length: 99999999999999999999999", "Content-Length: 1_0"),
    *("Transfer-Encoding: gzip", "Transfer-Encoding: chunked, identity", " folded: x", "Bad Name: x", "X: \x01", "\x00: x"),
    *(
        "Content-Encoding: gzip, gzip",
        "Content-Encoding: \xff",
        "Content-Type: multipart/form-data",
        "Content-Type: \xff/\xff",
    ),
    *("Content-Type: multipart/form-data; boundary=" + "b" * 5000, "Content-Type: multipart/form-data; boundary=\xff"),
    *("Range: bytes=" + "0-0," * 10_000, "Accept-Encoding: " + "," * 50_000, "Cookie: " + "a=b; " * 10_000),
    *("X-Request-ID: " + "a" * 5000, "Authorization: Bearer \xff", "Origin: null", "Inference-Header-Content-Length: 9" * 9),
]
_SMUGGLED = [
    head("POST /predict", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    head("POST /predict", "Content-Length: 5", "Content-Length: 6") + b"123456",
    head("POST /predict", "Transfer-Encoding: chunked") + b"zz\r\n\r\n",
    head("POST /predict", "Transfer-Encoding: chunked") + b"ffffffffffffffffff\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    bytes(1000),
    head("CONNECT evil.example:443"),
    head("GET /ping").replace(b"close", b"Upgrade, HTTP2-Settings") + b"",
]
_UPGRADE = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
_CHUNKED = head("POST /predict", f"Content-Type: {RAW}", "Transfer-Encoding: chunked")
_UNREAD = head("POST /nothing", "Transfer-Encoding: chunked").replace(b"close", b"keep-alive")
_PART = b'Content-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
_GARBAGE = [200, 400, 413, 415, 422]

ATTACKS = {
    "headers, a byte a second": Attack(drips(200, head("GET /ping")[:-2] + b"X: ", b"a"), [CLOSED]),
    "bodies, a byte a second": Attack(drips(200, head("POST /predict", "Content-Length: 1000"), b"a"), [408]),
    "line breaks instead of a further request": Attack(drips(50, b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n"), [200]),
    "a body after its refusal, a byte a second": Attack(
        drips(50, b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", b"a"), [404]
    ),
    "half a request line": Attack(many(500, b"POST /pre"), [CLOSED]),
    "10,000 connections that send nothing": Attack(lambda: many(connections())(), [CLOSED]),
    "clients that leave within their body": Attack(
        many(500, head("POST /predict", "Content-Length: 1000000") + bytes(100_000), leaves=True), [CLOSED]
    ),
    "100 (Continue), and then nothing": Attack(
        many(50, head("POST /predict", "Content-Length: 9", "Expect: 100-continue")), [408]
    ),
    "almost the largest body, and then nothing": Attack(
        lambda: (
            Talk(itertools.chain([head("POST /predict", f"Content-Length: {MAX_BODY}")], [bytes(2**16)] * 127), 0.001)
            for _ in range(16)
        ),
        [408, 429],
    ),
    "a body without end": Attack(endless(_CHUNKED, b"10000\r\n" + bytes(2**16) + b"\r\n"), [413, CLOSED]),
    "a body without end after its refusal": Attack(endless(_UNREAD, b"10000\r\n" + bytes(2**16) + b"\r\n"), [404]),
    "a length of 1 TB": Attack(endless(head("POST /predict", f"Content-Length: {10**12}"), bytes(2**16)), [413, CLOSED]),
    "chunks of one byte": Attack(endless(_CHUNKED, b"1\r\na\r\n" * 10_000), [400, CLOSED]),
    "a chunk extension without end": Attack(endless(_CHUNKED + b"1;", b"a" * 2**16), [400, CLOSED]),
    "trailers without end": Attack(endless(_CHUNKED + b"0\r\n", b"a: b\r\n" * 10_000), [400, CLOSED]),
    "a trailer without end": Attack(endless(_CHUNKED + b"0\r\na: ", b"a" * 2**16), [400, CLOSED]),
    "headers without end": Attack(endless(head()[:-2], b"a: b\r\n" * 10_000), [400, CLOSED]),
    "a header without end": Attack(endless(head()[:-2] + b"a: ", b"a" * 2**16), [400, CLOSED]),
    "a URL without end": Attack(endless(b"GET /", b"a" * 2**16), [400, CLOSED]),
    "100,000 pipelined requests": Attack(many(20, b"GET /ping HTTP/1.1\r\n\r\n" * 100_000), [200, 400, CLOSED]),
    "responses that nobody reads": Attack(
        lambda: (Talk([b"GET /docs/static/swagger-ui-bundle.js HTTP/1.1\r\n\r\n" * 10], reads=False) for _ in range(50)),
        [CLOSED],
    ),
    "gzip bombs": Attack(lambda: many(20, gzipped(bytes(2**28)))(), [413, 429]),
    "gzip bombs just within the limit": Attack(lambda: many(150, gzipped(bytes(MAX_BODY)))(), [200, 429]),
    "a damaged gzip": Attack(
        each(gzipped(b"image", -5), post(b"\x1f\x8b", "/predict", RAW, "Content-Encoding: gzip")), [400]
    ),
    "a form with 100,000 parts": Attack(many(10, form(*[_PART] * 100_000)), [400, 429]),
    "a form with 100,000 fields": Attack(
        many(10, form(*[b'Content-Disposition: form-data; name="f"\r\n\r\nx'] * 100_000)), [400, 429]
    ),
    "a part's headers without end": Attack(
        # The server closes after its first response, which a client that still sends the second form may lose.
        many(10, form(b"A: b\r\n" * 1_000_000), form(b"A: " + b"b" * 7 * 2**20)),
        [400, 429, CLOSED],
    ),
    "a form of almost-boundaries": Attack(many(10, form(_PART + b"\r\n--\r\n-\r" * 800_000)), [200, 429]),
    "strange forms": Attack(
        each(
            *(
                form(_PART + b"x", kind=f"multipart/form-data; boundary=b; charset={name}")
                for name in ("undefined", "idna", "hex")
            ),
            *(
                form(_PART + b"x", kind=f"multipart/form-data{rest}")
                for rest in ("", "; boundary=", ";;", "; boundary=" + "b" * 999)
            ),
            *(
                form(part)
                for part in (
                    b"",
                    b"\r\n\r\n",
                    b"A\r\n\r\n",
                    b"Content-Disposition: form-data\r\n\r\n",
                    b"\xff: \xff\r\n\r\n",
                )
            ),
            form(b'Content-Disposition: form-data; name="\xff\xfe"; filename="../../\x00"\r\n\r\nx'),
            form(b"Content-Type: multipart/mixed; boundary=b\r\n" + _PART + b"--b\r\n\r\n--b--"),
            form(_PART, end=b""),
        ),
        [200, 400, 422],
    ),
    "path tricks": Attack(
        each(*(head(f"{method} {path}", "Content-Length: 0") for path in _PATHS for method in ("GET", "POST", "OPTIONS"))),
        [200, 400, 404, 405],
    ),
    "header tricks": Attack(
        each(
            *(
                head(line, header)
                for header in _HEADERS
                for line in ("POST /predict", "GET /nothing", "GET /docs/static/swagger-ui.css")
            )
        ),
        [200, 206, 416, 400, 404, 413, 415, 422, CLOSED, 408],
    ),
    "requests within requests, and other protocols": Attack(each(*_SMUGGLED), [200, 400, CLOSED]),
    "WebSockets": Attack(
        each(*(head(f"GET {path}", *_UPGRADE).replace(b": close", b": Upgrade") for path in ("/", "/predict"))), [200, 405]
    ),
    "JSON, deeply nested": Attack(everywhere(*map(nested, [*range(880, 1000, 6), 100_000])), [400, 413, 422, 429]),
    "JSON, strange values": Attack(
        everywhere(
            *(
                "[]",
                "null",
                "1",
                '"x"',
                "{}",
                "{",
                "\ufeff{}",
                '{"images": {}}',
                '{"image": null, "instances": [null]}',
                "NaN",
            ),
            f'{{"images": ["{IMAGE}"], "images": [1], "instances": [], "inputs": 1, "inputs": "{IMAGE}"}}',
            f'{{"inputs": "{IMAGE}", "parameters": {{"top_k": {"9" * 4000}}}, "image": "\\ud800", "instances": ["\\ud8"]}}',
            f'{{"inputs": "{IMAGE}", "parameters": {{"top_k": NaN}}, "images": [], "instances": [{{"b64": {{}}}}]}}',
            f'{{"inputs": 1e999, "images": {"9" * 1_000_000}}}',
        ),
        [200, 400, 422],
    ),
    "V2, strange values": Attack(
        each(
            *(infer(id=value) for value in ("NaN", "1e999", '"\\ud800"', "[[]]", "null", "9" * 4000)),
            *(infer(outputs=f'[{{"name": {value}}}]') for value in ('"\\ud800"', "NaN", "[]", '["label"]')),
            *(infer(parameters=value) for value in ("NaN", "[]", '{"explain": "yes"}')),
        ),
        [200, 422],
    ),
    "JSON, a million texts": Attack(
        everywhere(json.dumps({name: ["ab"] * 330_000 for name in ("images", "instances", "inputs")})), [413, 429]
    ),
    "JSON, millions of lists": Attack(everywhere(*[f'{{"images": [{"[]," * 2_600_000}[]]}}'] * 3), [413, 429]),
    "tensors with lying lengths": Attack(
        each(
            *(tensor(struct.pack("<I", length) + b"x", 5) for length in (0, 1, 2, 2**31, 2**32 - 1)),
            *(tensor(b"\x01\x00\x00\x00x", size) for size in (0, -1, 10**30, 5.0, "5", None, [], True)),
            *(tensor(b"x", 1, length) for length in (1, 10, 10**6, 10**30)),
            *(tensor(bytes(count), count) for count in (1, 3, 4, 4 * 101, 4 * 10**6)),
        ),
        [200, 400, 422],
    ),
    "images that decompress to much": Attack(lambda: [Talk([post(content)]) for content in bombs() * 10], [200]),
    "polyglots": Attack(
        each(
            *(
                post(start + b"<script>alert(1)</script><?php ?>PK\x03\x04%PDF-1.7" + zlib.compress(bytes(10**6)))
                for start in (
                    b"GIF89a",
                    b"\xff\xd8\xff\xe0",
                    b"BM",
                    b"RIFF\0\0\0\0WEBP",
                    b"II*\0",
                    b"\x89PNG\r\n\x1a\n",
                    b"<svg>",
                )
            )
        ),
        [200],
    ),
}
