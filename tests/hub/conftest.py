"""A local Hub that accepts uploads, and the tiny layer artifact of the graft's tests."""

import pytest

from tests.graft.conftest import _no_bars, artifact, host_folder, llm, secret
from tests.support.hub_uploads import UploadRouter
from tests.support.loopback_hub import LoopbackHub

__all__ = ["_no_bars", "artifact", "host_folder", "llm", "secret"]


@pytest.fixture
def hub():
    with LoopbackHub() as server:
        server.router = UploadRouter(server, {"hf_good"})
        yield server


@pytest.fixture
def settings(hub):
    return {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_good"}
