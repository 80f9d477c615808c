"""A Hub on loopback for the tests of this room, and readers that do not wait long."""

from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.checkpoint.sources.hub_errors import HubLimits
from tests.support.loopback_hub import LoopbackHub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub without repos. Whoever reads from it repeats at once, and sends no token of the machine's user."""
    monkeypatch.setattr(HubSource, "limits", HubLimits(base_wait=0.001, max_wait=0.002, read_timeout=5.0))
    # Telemetry asks the real Hub for a list once a day.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    with LoopbackHub() as hub:
        yield hub
