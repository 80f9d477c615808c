"""Recipe files: ours, and mergekit's with the merge method passthrough."""

from pathlib import Path
from textwrap import dedent

import pytest

from layer_surgeon import AssemblyRecipe, plan_assembly
from layer_surgeon.assemble import LayerSlice
from layer_surgeon.assemble.recipe_files import read_recipe
from layer_surgeon.errors import ConfigError
from tests.support.checkpoints import TINY, write_sparse_checkpoint


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models `one` and `two`, of 3 layers."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("one", "two"):
        write_sparse_checkpoint(folder / name, TINY, range(3))
    return folder


def plan(text: str, folder: Path, tmp_path: Path) -> object:
    (tmp_path / "recipe.yaml").write_text(dedent(text))
    return plan_assembly(str(tmp_path / "recipe.yaml"))


def layers_of(plan: object) -> list[tuple[str, int, bool, float]]:
    return [(layer.source, layer.layer, layer.silent, layer.scale) for layer in plan.layers]  # type: ignore[attr-defined]


def test_our_recipe(models, tmp_path, monkeypatch):
    monkeypatch.chdir(models)
    made = plan(
        """
        slices:
          - source: one
            layers: 1:3       # base 60 in YAML 1.1
          - source: two
            layers: [0, "-1"]
            drop: 0
            scale: 0.5
          - {source: one, layers: 0, silent: true}
        embeddings: two
        replace: {0: "two:1"}
        scale: {1: 2}
        expand: every:4
        dtype: float16
        """,
        models,
        tmp_path,
    )
    assert layers_of(made) == [
        ("two", 1, False, 1.0),
        ("one", 2, False, 2.0),
        ("two", 2, False, 0.5),
        ("one", 0, True, 1.0),
        ("one", 0, True, 1.0),
    ]
    assert [source.name for source in made.sources] == ["two", "one"]
    assert made.head.name == "two"
    assert made.dtype == "float16"


# The passthrough examples of mergekit's repo and model cards, with small numbers of layers.
MERGEKIT = {
    # examples/orcamini-platy-44layer.yml
    "two models": (
        """
        slices:
          - sources:
            - model: one
              layer_range: [0, 2]
          - sources:
            - model: two
              layer_range: [1, 3]
        merge_method: passthrough
        dtype: float16
        """,
        [("one", 0), ("one", 1), ("two", 1), ("two", 2)],
        "two",
    ),
    "self-merge": (
        """
        dtype: bfloat16
        merge_method: passthrough
        slices:
        - sources:
          - layer_range: [0, 2]
            model: one
        - sources:
          - layer_range: [1, 3]
            model: one
        """,
        [("one", 0), ("one", 1), ("one", 1), ("one", 2)],
        "one",
    ),
    "pruned": (
        """
        slices:
          - sources: [{model: one, layer_range: [0, 1]}]
          - sources: [{model: one, layer_range: [2, 3]}]
        merge_method: passthrough
        """,
        [("one", 0), ("one", 2)],
        "one",
    ),
}


@pytest.mark.parametrize(("text", "layers", "head"), MERGEKIT.values(), ids=MERGEKIT)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_mergekit_examples(models, tmp_path, monkeypatch, family, text, layers, head):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        write_sparse_checkpoint(tmp_path / name, TINY | {"model_type": family}, [])
    made = plan(text, models, tmp_path)
    assert [(source, layer) for source, layer, _, _ in layers_of(made)] == layers
    assert (made.sources[0].name, made.head.name) == ("one", head)
    assert made.config["num_hidden_layers"] == len(layers)


def test_mergekit_revision(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: owner/name@v1, layer_range: [0, 2]}\n"
    )
    (part,) = read_recipe(tmp_path / "recipe.yaml").slices
    assert (part.source, part.layers) == ("hf://owner/name@v1", ("0:2",))


SLICE = "slices: [{sources: [{model: one, layer_range: [0, 1]}]}]"
REFUSED = {
    "unknown key": ("slices: []\nlayer: 3", "has the key 'layer'; known are slices"),
    "unknown key of a slice": ("slices: [{source: one, layer: 3}]", "A slice in .* has the key 'layer'"),
    "no slices": ("dtype: float16", "has no list of slices"),
    "empty slices": ("slices: []", "has no slices"),
    "a slice of text": ("slices: [one]", "which is not a mapping"),
    "a slice without a source": ("slices: [{layers: 3}]", "has no source"),
    "an empty source": ("slices: [{source: ''}]", "source is ''; it must be"),
    "a number as embeddings": ("slices: [{source: one}]\nembeddings: 3", "embeddings is 3"),
    "silent as text": ("slices: [{source: one, silent: maybe}]", "silent is 'maybe'"),
    "scale as text": ("slices: [{source: one, scale: loud}]", "has the factor 'loud'"),
    "scale without a position": ("slices: [{source: one}]\nscale: 0.5", "scale is 0.5; it must be POSITION=FACTOR"),
    "replace without a source": ("slices: [{source: one}]\nreplace: 5", "replace is 5; it must be POSITION=SOURCE"),
    "a list as dtype": ("slices: [{source: one}]\ndtype: [bfloat16]", "dtype is .'bfloat16'.; it must be one of"),
    "a number as revision": ("slices: [{source: one}]\nrevision: 1.0", "revision is 1.0, which is not text"),
    "not YAML": ("slices: [", "is not valid YAML"),
    "another merge method": (f"merge_method: slerp\n{SLICE}", "merge_method 'slerp', but only passthrough"),
    "no merge method": (SLICE, "merge_method None, but only passthrough"),
    "parameters": (f"merge_method: passthrough\nparameters: {{scale: 1}}\n{SLICE}", "'parameters'.*use `scale`"),
    "parameters of a source": (
        "merge_method: passthrough\nslices: [{sources: [{model: one, layer_range: [0, 1], parameters: {scale: 0}}]}]",
        "A source in .* has the key 'parameters'.*`silent` or `expand`",
    ),
    "base_model": (f"merge_method: passthrough\nbase_model: one\n{SLICE}", "'base_model'.*model of the first slice"),
    "tokenizer_source": (f"merge_method: passthrough\ntokenizer_source: union\n{SLICE}", "'tokenizer_source'"),
    "models": ("merge_method: passthrough\nmodels: [{model: one}]", "'models'.*under `slices`"),
    "two sources": (
        "merge_method: passthrough\nslices: [{sources: [{model: one, layer_range: [0, 1]}, {model: two}]}]",
        "passthrough needs exactly one",
    ),
    "no layer_range": ("merge_method: passthrough\nslices: [{sources: [{model: one}]}]", "layer_range None"),
    "a model of another type": (
        "merge_method: passthrough\nslices: [{sources: [{model: 3, layer_range: [0, 1]}]}]",
        "has the model 3",
    ),
    "a LoRA": (
        "merge_method: passthrough\nslices: [{sources: [{model: one+lora, layer_range: [0, 1]}]}]",
        "adds a LoRA",
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_recipes(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("settings", [{"scale": 0.5}, {"replace": 3}, {"expand": 0}], ids=str)
def test_refused_fields(settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} is .* it must be"):
        AssemblyRecipe(slices=(LayerSlice(source="owner/m"),), **settings)


def test_fields_accept_the_text_forms():
    slices = (LayerSlice(source="owner/m"),)
    parsed = AssemblyRecipe(slices=slices, replace="1=other/m:2", scale=["0=0.5"], expand="every:4")
    assert parsed == AssemblyRecipe(slices=slices, replace={1: ("other/m", 2)}, scale={0: 0.5}, expand=4)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        plan_assembly(str(tmp_path / "recipe.yaml"))
