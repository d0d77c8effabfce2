"""What tests of several modules share."""

import threading

import jax
import pytest
from fake_gcs import Server


@pytest.fixture(scope="module")
def quick_compilation():
    """Compilation is what takes the time here, and optimised programs take twice as long."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def _server():
    server = Server("bucket")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as monkeypatch:
        for key, value in server.environment().items():
            monkeypatch.setenv(key, value)
        pytest.importorskip("gcsfs")  # which reads one of them when it is imported
        yield server
    server.shutdown()


@pytest.fixture
def gcs(_server):
    """A fake Cloud Storage with the empty bucket "bucket", which this process's libraries use."""
    _server.objects.clear()
    yield _server
    _server.refuse = None
