"""For every family, a DonorLayer computes the same bits as the layer inside the whole model."""

import pytest

from layer_surgeon.donor import DonorLayer
from tests.support.exactness import difference
from tests.support.tiny_models import save_artifact, tiny_llama, tiny_model

_FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {},
    "gemma3_text": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0},
        },
    },
    "falcon": {"multi_query": True, "parallel_attn": True, "new_decoder_architecture": False, "alibi": False},
    "phi3": {},
    "gpt_neox": {},
    "gpt2": {},
    "opt": {},
    "olmo2": {},
    "smollm3": {},
    "mixtral": {},
}


@pytest.fixture(scope="module", params=_FAMILIES)
def whole_model(request):
    make = tiny_llama if request.param == "llama" else lambda **sizes: tiny_model(request.param, **sizes)
    return make(**_FAMILIES[request.param])


@pytest.fixture(scope="module", params=[0, 2, 3], ids=["first", "middle", "last"])
def index_and_donor(request, whole_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layer") / "artifact"
    return request.param, DonorLayer.from_pretrained(save_artifact(whole_model, [request.param], folder))


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_equals_the_layer_inside_its_model(whole_model, index_and_donor, padding):
    index, donor = index_and_donor
    assert difference(whole_model, donor, index, padding) == 0.0
