"""Plans: YAML becomes cells, and a wrong plan is rejected with a helpful message."""

import pytest

from layer_surgeon._io import write_json
from layer_surgeon.errors import ConfigError
from layer_surgeon.progress import NullProgress
from layer_surgeon.study.arms import DonorSpec
from layer_surgeon.study.donor_layers import prepare_layers
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import Cell, StudyPlan

DONOR = {"source": "someone/llm", "layer": -1}
FIRST = {"source": "someone/llm", "layer": "0:2"}


def plan(**changes):
    return StudyPlan.from_dict({"host": "someone/bert", "donor": DONOR, "data": ["sst2"], "seeds": [1, 2], **changes})


def test_cells_of_a_plan():
    cells = plan(arms=["host", "graft"], data=["sst2", "cola"], fractions=[1.0, 0.1]).cells()
    assert len(cells) == len({cell.id for cell in cells}) == 2 * 2 * 2 * 2
    assert [cell.seed for cell in cells] == [1] * 8 + [2] * 8
    assert cells[0].id.startswith("host.sst2.1.s1.")
    assert cells[0].finetune == {"seed": 1, "train_fraction": 1.0}


def test_ids_only_change_with_settings_that_decide_the_result():
    first = plan(arms=["host", "graft"]).cells()
    assert [cell.id for cell in plan(arms=["host", "graft", "random"], seeds=[1, 2, 3], name="x").cells()][:2] == [
        cell.id for cell in first[:2]
    ]
    for change in ({"finetune": {"num_epochs": 2}}, {"tests": "all", "data": ["sst2", "cola"]}, {"test_fraction": 0.3}):
        assert first[1].id not in [cell.id for cell in plan(arms=["host", "graft"], **change).cells()]
    assert first[0].id in [cell.id for cell in plan(arms=["host", "graft"], donor="other/llm").cells()]
    assert first[1].id not in [cell.id for cell in plan(arms=["host", "graft"], donor="other/llm").cells()]


def test_two_donors_with_the_same_name_are_refused(tmp_path):
    donors = [DonorSpec(source="a/llm", layers=(3,)), DonorSpec(source="b/llm", layers=(3,), dtype="float32")]
    with pytest.raises(
        ConfigError, match=r"layers of a/llm and b/llm \(dtype float32\) would both be in .*llm-L3\. Extract"
    ):
        prepare_layers(donors, StudyFolder(root=tmp_path), NullProgress())


def test_a_layer_of_another_donor_is_not_reused(tmp_path):
    folder = StudyFolder(root=tmp_path)
    write_json(folder.layer("llm-L3").with_name("llm-L3.json"), {"origin": "a/llm"})
    with pytest.raises(
        ConfigError, match=r"llm-L3 was extracted from a/llm, but the plan names b/llm\. Choose another --output"
    ):
        prepare_layers([DonorSpec(source="b/llm", layers=(3,))], folder, NullProgress())


def test_a_plan_survives_its_file(tmp_path):
    import yaml

    made = plan(
        arms=["host", {"name": "mine", "like": "gated", "finetune": {"learning_rate": 1e-3}}, "lora", "wide-head"],
        data=[{"name": "tweets", "train": "tweet_sentiment", "labels": {"negative": "bad", "positive": "good"}}],
    )
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(made.as_dict()))
    again = StudyPlan.read(path)
    assert again == made
    assert [Cell.from_dict(cell.as_dict()) for cell in made.cells()] == list(again.cells())


def test_custom_arms():
    made = plan(
        arms=[
            "graft",
            {"name": "slow", "finetune": {"learning_rate": 1e-5}, "graft": {"dropout": 0.1}},
            {"name": "slower", "like": "slow", "finetune": {"num_epochs": 9}},
            {"name": "middle", "like": "random", "donor": {"source": "other/llm", "layer": 3}},
        ],
        graft={"pooling": "mean"},
    )
    slower, middle = made.arms[2:]
    assert slower.finetune == {"learning_rate": 1e-5, "num_epochs": 9}
    assert slower.graft == {"pooling": "mean", "dropout": 0.1}
    assert middle.graft == {"pooling": "mean", "donor_init": "random"}
    assert middle.donor.name == "llm-L3"
    assert (middle.kind, slower.kind) == ("random", "graft")


@pytest.mark.parametrize(
    ("arms", "focus"),
    [
        (["host", "random", "graft", "matched"], "graft"),
        (["host", "matched", "matched-random"], "matched"),
        (["host", "random"], None),
    ],
)
def test_the_default_focus_is_the_graft_or_else_the_matched_one(arms, focus):
    assert plan(arms=arms).focus == focus


def test_an_empty_name_is_not_a_name():
    made = plan(name=None, title=None)
    assert (made.name, made.title) == ("study", "A study")


def test_names_of_arms_include_hosts_and_donors():
    made = plan(hosts=["a/bert", "b/roberta"], donors=["c/one", "d/two"], arms=["host", "graft"])
    assert [arm.name for arm in made.arms] == [
        "host@bert",
        "graft+one-L-1@bert",
        "graft+two-L-1@bert",
        "host@roberta",
        "graft+one-L-1@roberta",
        "graft+two-L-1@roberta",
    ]


def test_a_sweep():
    made = plan(layers=[0, 4, [2, 3]], arms=["host", "graft"])
    assert [arm.name for arm in made.arms] == ["host", "graft+llm-L0", "graft+llm-L4", "graft+llm-L2-3"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"arms": ["grfat"]}, "Did you mean graft"),
        ({"arm": ["host"]}, "Did you mean arms"),
        ({"arms": ["larger-host"]}, "No larger model"),
        ({"donor": None, "arms": ["graft"]}, "needs a donor"),
        ({"arms": ["host", "host"], "seeds": [1, 1]}, "has the seed 1 twice"),
        ({"fractions": [1, 1.0]}, "has the fraction 1 twice"),
        ({"tests": ["nowhere"]}, "tests is 'nowhere'"),
        ({"fractions": [0]}, "fractions is 0"),
        ({"data": [{"name": "a", "test": "b/c"}]}, "at least one data set with a training part"),
        ({"finetune": {"seed": 3}}, "seed is set under finetune. .* use the key seeds"),
        ({"finetune": {"task": "seq2seq"}}, "use the key task of the plan"),
        ({"arms": [{"name": "x", "finetune": {"train_fraction": 0.1}}]}, "finetune of the arm x. .* key fractions"),
        ({"graft": {"donor_reads": "text"}, "arms": ["wide-head"], "donor": FIRST}, "The arm wide-head grafts nothing"),
        ({"graft": {"residual": "gated"}, "arms": ["projections-only"]}, "but residual is 'gated'. Set it in the arms"),
        ({"graft": {"proj_out_norm": True}, "arms": ["wide-head"]}, "grafts nothing, but proj_out_norm is True"),
        (
            {"arms": [{"name": "wide-head", "graft": {"projection_init": "matched"}}]},
            "but projection_init is 'matched'",
        ),
        ({"arms": [{"name": "cut", "graft": {"residual": "gated"}}]}, "The arm cut grafts nothing"),
        ({"arms": [{"name": "host", "graft": {"train_donor": True}}]}, "grafts nothing, but train_donor is True"),
        ({"donor": {"source": "a", "layer": 3, "layers": [5]}}, "has the keys layer and layers"),
        ({"arms": [{"name": "zerogen", "synthetic": {"seed": -1}}]}, "seed is -1; it must be a whole number from 0"),
        ({"arms": [{"name": "zerogen", "synthetic": {"file": 5}}]}, "file of synthetic texts is 5; it must be a path"),
        ({"finetune": {"epochs": 3}}, "epochs"),
        (
            {"task": "seq2seq", "metric": "bert_score"},
            "the arm host does not compute it.*extra_metrics: bert_score",
        ),
        ({"graft": {"pooling": "first"}}, "pooling is 'first'"),
        ({"reference": "nobody"}, "reference is 'nobody'"),
        ({"arms": [{"name": "x", "lyke": "host"}]}, "'lyke'"),
        ({"data": [{"train": "sst2"}]}, "A data set is"),
        ({"arms": ["host", "wide-head"], "keep_models": True}, "the arm wide-head"),
        ({"arms": ["host", "lora"], "keep_models": True}, "the arm lora"),
        ({"donor": {"source": "a", "layer": "last"}}, "whole numbers"),
        ({"arms": ["host", {"name": "host@10 epochs", "like": "host"}]}, "can follow an @: bert. Give"),
    ],
)
def test_a_wrong_plan_is_refused_with_a_reason(change, said):
    with pytest.raises(ConfigError, match=said):
        plan(**{"arms": ["host", "graft"], **change})
