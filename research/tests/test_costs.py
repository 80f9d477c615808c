"""What arms cost, on tiny models: the numbers of the profile, and one row for each arm that costs something else."""

import json

import pytest
from transformers import BertModel

from layer_surgeon.cost.measure import Workload
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.models import build_model
from layer_surgeon.study.plan import StudyPlan
from research import costs
from research.efficiency import work_of
from tests.support.classification import bert_config, word_tokenizer
from tests.support.tiny_models import save_quietly, tiny_llama

PRICED = ["host", "stack", "stack-alone", "cut", "lora", "matched"]
CONTROLS = ["stack-random", "stack-permuted", "stack-shuffled"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("costs")
    for name, model in (("tiny-bert", BertModel(bert_config())), ("tiny-llama", tiny_llama(seed=5))):
        save_quietly(model, root / name)
        word_tokenizer().save_pretrained(root / name)
    plan = {
        "host": str(root / "tiny-bert"),
        "donor": {"source": str(root / "tiny-llama"), "layer": "0:2"},
        "arms": [*CONTROLS, *PRICED],
        "data": [{"name": "a", "train": "a.csv"}],
    }
    path = root / "tiny.yaml"
    path.write_text(json.dumps(plan))
    return path, StudyFolder(root=root / "work")


def test_controls_are_left_out_and_rows_are_those_of_the_model(study, monkeypatch):
    monkeypatch.setattr(costs, "TOKENS", 8)
    path, folder = study
    rows = {row["arm"]: row for row in costs.count(path, folder)}
    assert list(rows) == PRICED
    documented = costs.__doc__.partition("rows  ")[2]
    assert all(name in documented for row in rows.values() for name in row)
    arm = next(arm for arm in StudyPlan.from_dict(json.loads(path.read_text())).arms if arm.name == "stack")
    model = build_model(arm, costs.TASK, costs.SEED, folder)
    assert rows["stack"]["parameters_total"] == sum(parameter.numel() for parameter in model.parameters())
    assert rows["stack"]["macs"] == work_of(model, Workload(batch=1, length=8))["macs"] > rows["host"]["macs"]
    assert rows["stack-alone"]["macs_training"] < rows["stack"]["macs_training"]
    assert rows["stack"]["disk_bytes"] > 4 * rows["stack"]["parameters_total"] > rows["host"]["disk_bytes"]
    # The cut donor is trained whole, LoRA trains little of the host, and a matched graft also holds frozen layers.
    assert rows["cut"]["parameters_trained"] == rows["cut"]["parameters_total"]
    assert rows["lora"]["parameters_trained"] < rows["host"]["parameters_trained"] < rows["lora"]["parameters_total"]
    assert rows["matched"]["parameters_trained"] < rows["matched"]["parameters_total"]
    assert rows["cut"]["macs_training"] == pytest.approx(3 * rows["cut"]["macs"], rel=0.1)
