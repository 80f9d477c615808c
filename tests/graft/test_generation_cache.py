"""Generation with a cache for the donor layer gives the same text as without, and computes each token once."""

import copy

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StaticCache

from layer_surgeon.errors import GraftError
from layer_surgeon.graft import graft_layer
from layer_surgeon.graft.generation_cache import GraftedCache
from tests.graft.conftest import host_table, make_inputs
from tests.graft.test_causal import whole_host
from tests.support.graft_suite import LENGTHS, padded_inputs
from tests.support.tiny_models import save_artifact, tiny_model
from tests.support.tiny_stacks import save_stack

TASK = "causal-lm"
STEPS = 12  # With the 9 tokens of the prompt, far beyond the sliding windows of 5.
# RoPE; sliding window; RoPE, and every other layer with a window; alibi (two ways); learned positions (two ways).
FAMILIES = ("llama", "mistral", "gemma2", "bloom", "mpt", "gpt2", "opt", "qwen2")
GREEDY = {"do_sample": False, "no_repeat_ngram_size": 1}
BEAMS = {"do_sample": False, "no_repeat_ngram_size": 1, "num_beams": 3}
SAMPLING = {"do_sample": True, "top_k": 12}
SAMPLED_BEAMS = {"do_sample": True, "num_beams": 3, "num_return_sequences": 2}


@pytest.fixture(scope="module")
def donor_of(tmp_path_factory):
    """The artifact of some layers of a family, or of its first three layers for the tokens of the hosts."""
    root = tmp_path_factory.mktemp("families")

    def make(family, layers=(2,), reads="host", **overrides):
        name = "-".join([family, reads, *map(str, layers), *overrides])
        folder = root / name
        if not folder.exists():
            # Weights large enough that the texts depend on what the donor attends to.
            model = tiny_model(family, **overrides)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter.add_(torch.randn_like(parameter) * 0.2)
            if reads == "host":
                save_artifact(model, list(layers), folder)
            else:
                host_table(save_stack(model, 3, folder), 40)
        return folder

    return make


def positions_of(model):
    """A list of how many positions of each text the donor layer computed, pass by pass."""
    passes = []
    model.donor.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    return passes


def generate(model, inputs, **settings):
    torch.manual_seed(7)
    return model.generate(**inputs, max_new_tokens=STEPS, min_new_tokens=STEPS, pad_token_id=0, **settings)


def assert_cache_changes_nothing(model, *settings):
    passes = positions_of(model)
    for chosen in settings:
        inputs = padded_inputs("left")
        assert LENGTHS == (9, 4, 6)
        passes.clear()
        cached = generate(model, inputs, **chosen)
        assert passes == [9] + [1] * (STEPS - 1), chosen
        passes.clear()
        uncached = generate(model, inputs, use_cache=False, **chosen)
        assert passes == list(range(9, 9 + STEPS)), chosen
        assert torch.equal(cached, uncached), chosen


@pytest.mark.parametrize("family", ["llama", "mistral", "bloom", "gpt2", "qwen2"])
@pytest.mark.parametrize("host", ["llama", "gpt2", "qwen2"])
def test_same_text_in_a_padded_batch(host, family, donor_of):
    model = graft_layer(whole_host(host), donor_of(family), TASK)
    assert_cache_changes_nothing(model, GREEDY, BEAMS, SAMPLING)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_text_with_a_graft_inside_the_host(family, donor_of):
    model = graft_layer(whole_host("gpt2"), donor_of(family), TASK, site=0)
    assert_cache_changes_nothing(model, GREEDY, SAMPLED_BEAMS)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_text_with_a_donor_that_reads_it(family, donor_of):
    model = graft_layer(whole_host("qwen2"), donor_of(family, reads="text"), TASK, donor_reads="text")
    torch.nn.init.ones_(model.gate)
    assert_cache_changes_nothing(model, GREEDY, BEAMS)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_same_logits_with_a_loop_of_your_own(family, donor_of):
    model = graft_layer(whole_host("llama"), donor_of(family), TASK)
    inputs = padded_inputs("left")
    whole = model(**inputs).logits
    cache, logits, start = None, [], 0
    for stop in (3, 4, 5, 8, 9):
        arguments = {} if cache is None else {cache_name(model): cache}
        ids, mask = inputs["input_ids"][:, start:stop], inputs["attention_mask"][:, :stop]
        out = model(input_ids=ids, attention_mask=mask, use_cache=True, **arguments)
        cache, start = out[cache_name(model)], stop
        logits.append(out.logits)
    assert isinstance(cache, GraftedCache)
    is_token = inputs["attention_mask"].bool()
    difference = (torch.cat(logits, dim=1) - whole)[is_token].abs().max()
    assert difference < 1e-5 * whole.abs().max()


def cache_name(model):
    return "cache" if "cache" in model._host_inputs else "past_key_values"


@torch.no_grad()
def test_a_loop_without_masks(donor_of):
    model = graft_layer(whole_host("gpt2"), donor_of("llama"), TASK)
    ids = make_inputs()["input_ids"]
    # A cache that is passed is used, without use_cache.
    cache = DynamicCache(config=model.host.config)
    pieces = [model(input_ids=piece, **{cache_name(model): cache}).logits for piece in ids.split([4, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert not [value for value in model(input_ids=ids).values() if hasattr(value, "get_seq_length")]


def test_settings_of_the_graft(donor_of):
    several = donor_of("gemma2", layers=(3, 1, 1))  # Full attention, and twice a window.
    assert_cache_changes_nothing(graft_layer(whole_host("llama"), several, TASK), GREEDY, BEAMS)
    gated = graft_layer(whole_host("llama"), donor_of("llama"), TASK, residual="gated", site=0)
    torch.nn.init.ones_(gated.gate)
    assert_cache_changes_nothing(gated, GREEDY, BEAMS)
    trained = graft_layer(whole_host("llama"), donor_of("gpt2"), TASK, train_donor=True)
    assert_cache_changes_nothing(trained.train().eval(), GREEDY, BEAMS)
    assert_cache_changes_nothing(copy.deepcopy(gated), GREEDY, BEAMS)


@pytest.mark.parametrize("family", ["llama", "opt", "phi3", "gpt_neox"])
def test_prompt_of_one_token(family, donor_of):
    """With one key and no cache, the donor skips queries and keys; later tokens need the keys."""
    model = graft_layer(whole_host("qwen2"), donor_of(family), TASK)
    assert model.donor.one_key_shortcut
    inputs = {"input_ids": torch.tensor([[5]]), "attention_mask": torch.tensor([[1]])}
    assert torch.equal(generate(model, inputs), generate(model, inputs, use_cache=False))


def test_beams_need_the_donor_to_be_reordered(donor_of, monkeypatch):
    model = graft_layer(whole_host("llama"), donor_of("llama"), TASK)
    expected = generate(model, padded_inputs("left"), **BEAMS)
    monkeypatch.setattr(GraftedCache, "reorder_cache", DynamicCache.reorder_cache)
    assert not torch.equal(generate(model, padded_inputs("left"), **BEAMS), expected)


@torch.no_grad()
def test_what_is_done_to_the_cache_is_done_to_both(donor_of):
    model = graft_layer(whole_host("llama"), donor_of("llama", layers=(2, 3)), TASK)
    inputs = make_inputs()
    cache = model(**inputs, use_cache=True)[cache_name(model)]
    before = [layer.keys.clone() for layer in (*cache.layers, *cache.donor_cache.layers)]

    def check(change):
        for layer, keys in zip((*cache.layers, *cache.donor_cache.layers), before, strict=True):
            assert torch.equal(layer.keys, change(keys))

    cache.reorder_cache(torch.tensor([2, 0, 1]))
    check(lambda keys: keys[[2, 0, 1]])
    cache.crop(-2)
    check(lambda keys: keys[[2, 0, 1], :, :-2])
    cache.batch_repeat_interleave(2)
    check(lambda keys: keys[[2, 2, 0, 0, 1, 1], :, :-2])
    cache.batch_select_indices(torch.tensor([1, 4]))
    check(lambda keys: keys[[2, 1], :, :-2])
    assert cache.is_croppable
    cache.reset()
    # transformers 5.17 keeps the positions and sets them to zero.
    assert not [
        layer for layer in (*cache.layers, *cache.donor_cache.layers) if layer.keys is not None and layer.keys.any()
    ]


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_assisted_decoding(family, donor_of):
    """It passes several tokens at once, and removes rejected ones from the cache."""
    host = whole_host("llama")
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6, 7]]), "attention_mask": torch.ones(1, 9).long()}
    assisted = {"prompt_lookup_num_tokens": 3, "do_sample": False}
    if not torch.equal(generate(host, inputs, **assisted), generate(host, inputs, do_sample=False)):
        pytest.skip("this version of transformers stops early, also without a graft")
    model = graft_layer(host, donor_of(family), TASK)
    passes = positions_of(model)
    found = generate(model, inputs, **assisted)
    assert max(passes[1:]) > 1
    assert torch.equal(found, generate(model, inputs, do_sample=False, use_cache=False))


@torch.no_grad()
def test_a_prefix_is_computed_once(donor_of):
    model = graft_layer(whole_host("llama"), donor_of("llama"), TASK)
    inputs = make_inputs(batch=1)
    prefix = DynamicCache(config=model.host.config)
    model(**{name: value[:, :6] for name, value in inputs.items()}, **{cache_name(model): prefix})
    passes = positions_of(model)
    found = generate(model, inputs, do_sample=False, **{cache_name(model): copy.deepcopy(prefix)})
    assert passes == [3] + [1] * (STEPS - 1)
    assert prefix.get_seq_length() == prefix.donor_cache.get_seq_length() == 6
    assert torch.equal(found, generate(model, inputs, do_sample=False, use_cache=False))


@torch.no_grad()
def test_tokens_that_the_donor_has_not_seen(donor_of):
    host = whole_host("llama")
    model = graft_layer(host, donor_of("llama"), TASK)
    inputs = make_inputs()
    message = "The cache holds tokens, but the donor layer has no cache of them. Pass all input_ids"
    by_the_host = DynamicCache(config=host.config)
    shared = model(**inputs, use_cache=True)[cache_name(model)]
    for cache in (by_the_host, shared):
        host(**inputs, use_cache=True, **{cache_name(model): cache})
        with pytest.raises(GraftError, match=message):
            model(input_ids=inputs["input_ids"][:, :1], **{cache_name(model): cache})


def test_static_cache_of_yours(donor_of):
    model = graft_layer(whole_host("llama"), donor_of("llama"), TASK)
    static = StaticCache(config=model.host.config, max_cache_len=40)
    message = (
        "The cache is a StaticCache, which the donor layer's cache can't join. Pass an empty DynamicCache or no cache"
    )
    with pytest.raises(GraftError, match=message):
        model(**make_inputs(), **{cache_name(model): static})
    with pytest.raises(GraftError, match=message):
        generate(model, make_inputs(), **{cache_name(model): static})


def assert_runs_without_cache(model, reason):
    inputs = padded_inputs("left")
    passes = positions_of(model)
    found = generate(model, inputs, do_sample=False)
    assert passes == list(range(9, 9 + STEPS))
    assert torch.equal(found, generate(model, inputs, do_sample=False, use_cache=False))
    with pytest.raises(GraftError, match=f"use_cache is true, but {reason}. Leave use_cache out; each new token"):
        generate(model, inputs, use_cache=True)
    assert not [value for value in model(**inputs, use_cache=True).values() if hasattr(value, "get_seq_length")]


def test_donor_that_keeps_another_state(donor_of):
    layer_types = ["linear_attention", "full_attention"] * 2
    model = graft_layer(whole_host("llama"), donor_of("qwen3_next", layer_types=layer_types), TASK)
    assert_runs_without_cache(model, "the donor layer has no cache")
    attention = graft_layer(whole_host("llama"), donor_of("qwen3_next", layers=(3,), layer_types=layer_types), TASK)
    assert_cache_changes_nothing(attention, GREEDY)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_donor_whose_positions_depend_on_the_length(dtype, donor_of):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
    }
    longrope = donor_of("phi3", rope_parameters=rope, original_max_position_embeddings=16)
    model = graft_layer(whole_host("llama"), longrope, TASK, donor_dtype=dtype)
    assert_runs_without_cache(model, "the donor layer has no cache")
    assert graft_layer(whole_host("llama"), donor_of("phi3"), TASK, donor_dtype=dtype).new_donor_cache() is not None


def test_host_with_a_cache_of_its_own(donor_of, monkeypatch):
    model = graft_layer(whole_host("llama"), donor_of("llama"), TASK)
    monkeypatch.setattr(type(model.host), "_supports_default_dynamic_cache", classmethod(lambda cls: False))
    assert_runs_without_cache(model, r"the host \(llama\) has another kind of cache than the donor layer")


def test_host_without_layers(donor_of):
    model = graft_layer(whole_host("llama"), donor_of("llama"), TASK, site="embeddings")
    assert_runs_without_cache(model, "a host without layers has no cache")


def test_gradient_checkpointing(donor_of):
    model = graft_layer(whole_host("llama"), donor_of("llama"), TASK)
    # transformers 5.24 renamed it.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    assert_cache_changes_nothing(model, GREEDY)
    model.train()
    assert_runs_without_cache(model, "gradient checkpointing in training mode allows no cache")


@pytest.mark.parametrize("passed", ["argument", "config", "positional config", "own config"])
def test_other_kinds_of_cache_are_not_used(passed, donor_of):
    model = graft_layer(whole_host("llama"), donor_of("llama"), TASK)
    inputs = make_inputs()
    expected = generate(model, inputs, do_sample=False)
    settings = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}
    static = GenerationConfig(**settings, eos_token_id=2, cache_implementation="static")
    passes = positions_of(model)
    if passed == "argument":
        found = model.generate(**inputs, **settings, cache_implementation="static")
    elif passed == "config":
        found = model.generate(**inputs, generation_config=static)
    elif passed == "positional config":
        found = model.generate(inputs["input_ids"], static, attention_mask=inputs["attention_mask"])
    else:
        model.generation_config = static
        found = model.generate(**inputs)
    assert passes == list(range(9, 9 + STEPS))
    assert torch.equal(found, expected)
    with pytest.raises(GraftError, match="use_cache is true, but cache_implementation 'static' is another kind"):
        model.generate(**inputs, use_cache=True, cache_implementation="static")
    assert torch.equal(generate(model, inputs, do_sample=False, cache_implementation="dynamic"), expected)


def test_control_arm_has_the_hosts_cache():
    model = graft_layer(whole_host("llama"), None, TASK)
    inputs = make_inputs()
    assert model.generate(**inputs, use_cache=True, max_new_tokens=2, min_new_tokens=2).shape == (3, 11)
    cache = model(**inputs, use_cache=True)[cache_name(model)]
    assert cache.get_seq_length() == 9
    assert type(cache) is DynamicCache
