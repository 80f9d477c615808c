"""A server of S3's protocol on loopback, moto's, as the AWS variables of the process name it while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

import pytest
import s3fs
from moto.server import ThreadedMotoServer

# The AWS libraries warn about deprecated parts of Python and of each other, which we can't fix.
IGNORED = "ignore::DeprecationWarning:(boto|moto|aio|s3|flask|werkzeug).*"


@contextmanager
def run_s3() -> Iterator[s3fs.S3FileSystem]:
    """A context in which `s3://bucket` exists; yields a client of its own."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "testing")
            # A client that an earlier server's tests left would still ask that one.
            store = s3fs.S3FileSystem(skip_instance_cache=True)
            # moto keeps buckets in the process, not in the server.
            urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
            store.mkdir("bucket")
            yield store
    finally:
        server.stop()
