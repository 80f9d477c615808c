"""What the benchmark of efficiency says of tiny models: the product's own numbers, and ratios within a round."""

from pathlib import Path

import pytest
from transformers import BertModel

from layer_surgeon.cost.profile import profile_graft
from layer_surgeon.study.layout import StudyFolder
from research import efficiency
from research.tables import efficiency_table
from tests.support.classification import bert_config
from tests.support.tiny_models import save_quietly, tiny_llama

PEAKS = {arm: number for number, arm in enumerate(efficiency.ARMS)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    config = bert_config()
    # Texts of 100 tokens are what is counted.
    config.max_position_embeddings = 128
    save_quietly(BertModel(config), root / "tiny-bert")
    save_quietly(tiny_llama(seed=5), root / "tiny-llama")
    return efficiency.Pair(
        host=str(root / "tiny-bert"), donor=str(root / "tiny-llama"), folder=StudyFolder(root=root / "work")
    )


@pytest.fixture(scope="module")
def rows(pair):
    pytest.importorskip("peft")
    measured = efficiency.measure_pair(pair, 2, 2, lambda pair, arm, batch: PEAKS[arm])
    return {row["arm"]: row for row in measured}


def test_every_arm_has_a_row_with_all_that_is_documented(rows):
    assert tuple(rows) == efficiency.ARMS
    documented = efficiency.__doc__.partition("rows  ")[2]
    for row in rows.values():
        assert all(name in documented for name in row), row
    assert {arm: row["peak_memory_bytes"] for arm, row in rows.items()} == PEAKS


def test_weights_and_work_are_those_of_the_profile(pair, rows):
    layer = next(path for path in (pair.folder.root / "layers").iterdir() if path.is_dir())
    profile = profile_graft(pair.host, str(layer))
    for arm, model in (("host", profile.alone), ("graft", profile.grafted)):
        row = rows[arm]
        assert (row["parameters_total"], row["parameters_trained"]) == (model.parameters, model.trained)
        assert (row["macs"], row["macs_training"]) == (model.macs.total, model.training_macs)


def test_arms_differ_in_what_they_say_they_do(rows):
    trained = {arm: row["parameters_trained"] for arm, row in rows.items()}
    assert trained["lora"] < trained["host"] < trained["graft"] == trained["wide-head"] < trained["donor-trained"]
    assert rows["donor-trained"]["parameters_trained"] == rows["graft"]["parameters_total"]
    assert rows["lora"]["macs"] > rows["host"]["macs"]
    assert rows["lora"]["macs_training"] < rows["host"]["macs_training"]
    assert rows["graft"]["macs"] == rows["donor-trained"]["macs"] > rows["wide-head"]["macs"] > rows["host"]["macs"]
    assert rows["graft"]["macs_training"] < rows["donor-trained"]["macs_training"]
    # A frozen layer is stored apart from the trained weights; a trained one is among them.
    donors = {arm for arm, row in rows.items() if row["disk_bytes_donor"] is not None}
    assert donors == {"graft"}
    assert rows["host"]["disk_bytes_trained"] < rows["graft"]["disk_bytes_trained"]
    assert rows["graft"]["disk_bytes_trained"] < rows["donor-trained"]["disk_bytes_trained"]


def test_ratios_are_those_within_a_round():
    ratios = efficiency.compare({"host": [1.0, 10.0, 2.0], "graft": [1.5, 11.0, 4.0]}, 32)
    assert ratios["graft"] == {"step_seconds_32": 4.0, "step_ratio_32": 1.5, "step_ratio_32_range": [1.1, 2.0]}
    assert ratios["host"] == {"step_seconds_32": 2.0, "step_ratio_32": 1.0, "step_ratio_32_range": [1.0, 1.0]}


def test_arms_take_turns_in_being_first(pair, monkeypatch):
    taken = []
    monkeypatch.setattr(efficiency, "new_step", lambda model: lambda inputs: taken.append(model))
    monkeypatch.setattr(efficiency, "new_inputs", lambda *arguments: {})
    seconds = efficiency.time_steps({"a": "a", "b": "b", "c": "c"}, 2, 32, 2)
    assert "".join(taken) == "abcbcacab"
    assert {arm: len(values) for arm, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_a_step_trains_what_is_to_be_trained(pair):
    pair.prepare()
    model = pair.build("graft")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    efficiency.new_step(model)(efficiency.new_inputs(model, 4, 6))
    changed = {name.partition(".")[0] for name, value in model.named_parameters() if not value.equal(before[name])}
    assert changed == {"host", "proj_in", "proj_out", "head"}


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own(pair):
    pair.prepare()
    assert efficiency.peak_in_new_process(pair, "graft", 2) > 1_000_000


def test_bare_names_are_of_packages(tmp_path):
    assert efficiency.named("gemma-3-270m") == "packaged:gemma-3-270m"
    assert efficiency.named(str(tmp_path)) == str(tmp_path)
    assert efficiency.named("packaged:x") == "packaged:x"


def test_the_table_has_a_line_for_each_row(rows):
    lines = efficiency_table({"rows": list(rows.values())}).splitlines()
    assert len(lines) == 2 + len(rows)
    assert Path(rows["host"]["host"]).name in lines[2]
