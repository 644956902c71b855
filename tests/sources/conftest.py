"""A web server and an object store of this machine, and networks that give up soon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.web_server import WebServer, web_server

from deltapack.sources import objects, retrying, stores


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Waits are short, and nothing is known of what was there before."""
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(retrying, "STALL_SECONDS", 0.3)
    stores.forget()
    yield
    stores.forget()


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A server without files."""
    pytest.importorskip("urllib3")
    with web_server() as server:
        yield server


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """A server of S3, moto's."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of boto3; the bucket `models` is empty."""
    import boto3
    import fsspec

    for name, text in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1"), ("ENDPOINT_URL", address)):
        monkeypatch.setenv(f"AWS_{name}", text)
    objects._system.cache_clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # one of another test has no credentials
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    yield client
    for row in client.list_objects_v2(Bucket="models").get("Contents", []):
        client.delete_object(Bucket="models", Key=row["Key"])
    client.delete_bucket(Bucket="models")
    objects._system.cache_clear()
