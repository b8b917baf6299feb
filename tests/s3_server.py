"""A real S3 server on loopback, and a network in front of it that counts bytes and can fail."""

from __future__ import annotations

import logging
import resource
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

BUCKET = "natural-scenes-dataset"


class Server:
    """moto's S3 behind a wire.

    ``sent`` counts the bytes of objects that went over the wire, by key. ``budget`` is how many more may pass before every connection breaks off;
    ``damaged`` are keys whose bytes arrive wrong; ``delay`` is how long each answer takes; ``unlisted`` denies lists of what there is.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._wire, threaded=True, request_handler=MotoRequestHandler)
        self.endpoint = f"http://127.0.0.1:{self._server.port}"
        self._lock = threading.Lock()
        self.heal()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        nobody = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
        self.client = boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **nobody)
        self.client.create_bucket(Bucket=BUCKET)

    def heal(self) -> None:
        self.sent: Counter[str] = Counter()
        self.budget: int | None = None
        self.damaged: tuple[str, ...] = ()
        self.delay = 0.0
        self.unlisted = False

    def stop(self) -> None:
        self._server.shutdown()

    def _wire(self, environ, start_response):
        if self.unlisted and "list-type" in environ["QUERY_STRING"]:
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        answer = self._moto(environ, start_response)
        key = environ["PATH_INFO"].removeprefix(f"/{BUCKET}/")
        if environ["REQUEST_METHOD"] != "GET" or environ["QUERY_STRING"]:
            return answer
        return self._carried(key, b"".join(answer))

    def _carried(self, key: str, body: bytes) -> Iterator[bytes]:
        time.sleep(self.delay)
        if key in self.damaged and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        with self._lock:
            passed = len(body) if self.budget is None else min(len(body), self.budget)
            self.sent[key] += passed
            self.budget = None if self.budget is None else self.budget - passed
        yield body[:passed]
        if passed < len(body):
            raise ConnectionAbortedError

    def put(self, key: str, body: bytes, *, public: bool = True) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=body, ACL="public-read" if public else "private")

    def upload(self, root: Path) -> None:
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            self.put(file.relative_to(root).as_posix(), file.read_bytes())

    @contextmanager
    def without(self, key: str) -> Iterator[None]:
        """Take an object away for a while."""
        body = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        self.client.delete_object(Bucket=BUCKET, Key=key)
        try:
            yield
        finally:
            self.put(key, body)

    @contextmanager
    def replaced(self, key: str, body: bytes, *, public: bool = True) -> Iterator[None]:
        """Put another object in one's place for a while."""
        with self.without(key):
            self.put(key, body, public=public)
            yield


@contextmanager
def files_of_at_most(count: int):
    """The kernel refuses to let any file of this process grow further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
