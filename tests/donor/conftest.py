"""Fixtures: a layer of a tiny Llama, as an artifact and as a module."""

import pytest

from layer_surgeon.donor import DonorLayer
from tests.support.tiny_models import save_artifact, tiny_llama


@pytest.fixture(scope="module")
def llama():
    return tiny_llama()


@pytest.fixture(scope="module")
def artifact(llama, tmp_path_factory):
    return save_artifact(llama, [2], tmp_path_factory.mktemp("layer") / "artifact")


@pytest.fixture
def donor(artifact):
    return DonorLayer.from_pretrained(artifact)
