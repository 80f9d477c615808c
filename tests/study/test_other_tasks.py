"""Studies of tasks other than classification have the same controls, and test on every test set."""

import json

import pytest
import torch
from transformers import BertModel

from layer_surgeon.errors import ConfigError, DataError
from layer_surgeon.graft import graft_layer
from layer_surgeon.study import testing
from layer_surgeon.study.cells import run_cell
from layer_surgeon.study.controls import control_model
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.prepare import prepare_study
from layer_surgeon.study.summary import summarize
from tests.support.classification import Recorder, bert_config
from tests.support.finetune_tasks import (
    question_rows,
    tagged_rows,
    task_tokenizer,
    tiny_bart,
    tiny_gpt2,
    translated_rows,
)
from tests.support.tiny_models import save_quietly, tiny_llama

ARMS = ["graft", "projections-only", "wide-head"]
FINETUNE = {"max_steps": 2, "batch_size": 8, "max_length": 40, "max_target_length": 6, "num_beams": 1}


def texts(count, seed=0):
    return [{"text": row["en"]} for row in translated_rows(count, seed)]


TASKS = {
    "token-classification": (lambda: BertModel(bert_config()), tagged_rows, "f1"),
    "question-answering": (lambda: BertModel(bert_config()), question_rows, "f1"),
    "seq2seq": (tiny_bart, translated_rows, "bleu"),
    "causal-lm": (tiny_gpt2, texts, "perplexity"),
}


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("donors") / "tiny-llama"
    save_quietly(tiny_llama(seed=5), folder)
    return str(folder)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def study(folder, task, donor, **changes):
    make, rows, _ = TASKS[task]
    torch.manual_seed(0)
    save_quietly(make(), folder / "host")
    task_tokenizer().save_pretrained(folder / "host")
    data = [
        {
            "name": "one",
            "train": write(folder / "train.jsonl", rows(16)),
            "test": write(folder / "one.jsonl", rows(8, 8)),
        },
        {"name": "two", "test": write(folder / "two.jsonl", rows(8, 9))},
    ]
    content = {"task": task, "host": str(folder / "host"), "donor": donor, "arms": ARMS, "data": data, "tests": "all"}
    return StudyPlan.from_dict({**content, "seeds": [1], "finetune": FINETUNE, **changes})


def run(plan, root):
    folder = StudyFolder(root=root)
    plan.write(folder.plan)
    prepare_study(plan, folder, Recorder())
    return {cell.id: run_cell(cell, folder) for cell in plan.cells()}, summarize(plan, folder)


@pytest.mark.parametrize("task", ["question-answering", "seq2seq"])
def test_controls_and_all_test_sets(task, donor, tmp_path):
    plan = study(tmp_path, task, donor)
    results, summary = run(plan, tmp_path / "study")
    trained = {cell.arm: cell.parameters.trained for cell in results.values()}
    assert trained["graft"] == trained["projections-only"] == trained["wide-head"]
    for cell in results.values():
        assert {name: test.examples for name, test in cell.tests.items()} == {"one": 8, "two": 8}
        assert all(TASKS[task][2] in test.scores for test in cell.tests.values())
    assert len({cell.history[0]["training_loss"] for cell in results.values()}) == len(results)
    assert [(table.data, table.test) for table in summary.tables] == [("one", "one"), ("one", "two")]


def test_the_whole_test_part_is_used(donor, tmp_path):
    """Tests use the whole test part, even if the validation part is limited."""
    plan = study(tmp_path, "token-classification", donor, arms=["host"], finetune={**FINETUNE, "max_eval_samples": 2})
    results, _ = run(plan, tmp_path / "study")
    for cell in results.values():
        assert cell.validation.examples == 2
        assert [test.examples for test in cell.tests.values()] == [8, 8]


def test_a_limit_takes_the_same_test_examples_for_all_seeds(donor, tmp_path, monkeypatch):
    seen = []
    evaluate = testing.evaluate_model
    monkeypatch.setattr(
        testing, "evaluate_model", lambda *args, **kw: (seen.append(kw["config"]), evaluate(*args, **kw))[1]
    )
    data = study(tmp_path, "token-classification", donor).as_dict()["data"]
    limited = [{**spec, "max_test_samples": limit} for spec, limit in zip(data, (3, 5), strict=True)]
    plan = study(tmp_path, "token-classification", donor, arms=["host"], data=limited, seeds=[1, 2])
    results, _ = run(plan, tmp_path / "study")
    assert [[test.examples for test in cell.tests.values()] for cell in results.values()] == [[3, 5], [3, 5]]
    assert len({config.seed for config in seen}) == 1 < len(seen)


def test_a_data_set_without_a_test_part_is_refused(donor, tmp_path):
    plan = study(tmp_path, "token-classification", donor, arms=["host"])
    one, two = ({"name": name, "train": list(plan.data[0].train)} for name in ("one", "two"))
    bare = study(tmp_path, "token-classification", donor, arms=["host"], data=[one, two], tests="two")
    with pytest.raises(DataError, match="no test and no validation part"):
        run(bare, tmp_path / "study")
    limited = {**one, "max_test_samples": 2}
    with pytest.raises(DataError, match="no test and no validation part"):
        run(study(tmp_path, "token-classification", donor, arms=["host"], data=[limited]), tmp_path / "limited")
    own = study(tmp_path, "token-classification", donor, arms=["host"], data=[one], tests="own")
    results, _ = run(own, tmp_path / "own")
    assert next(iter(results.values())).tests["one"].examples == 3


def test_the_validation_split_of_a_folder_is_used_for_tests(donor, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write(data / "train.jsonl", tagged_rows(4, 1))
    write(data / "validation.jsonl", tagged_rows(6, 2))
    plan = study(tmp_path, "token-classification", donor, arms=["host"])
    one = {"name": "one", "train": list(plan.data[0].train), "validation": str(data), "max_test_samples": 5}
    plan = study(tmp_path, "token-classification", donor, arms=["host"], data=[one], tests="own")
    results, _ = run(plan, tmp_path / "study")
    (cell,) = results.values()
    assert (cell.validation.examples, cell.tests["one"].examples) == (6, 5)


@pytest.mark.parametrize("task", TASKS)
def test_a_block_has_as_many_parameters_as_the_projections(task):
    torch.manual_seed(0)
    host = TASKS[task][0]()
    for control in ("projections-only", "wide-head"):
        model = control_model(host, control, 32, task=task)
        alone = graft_layer(host, None, task=task)
        assert model.num_parameters() - alone.num_parameters() == 2 * 16 * 32
        ids = torch.tensor([[1, 5, 6, 2]])
        wanted = {"decoder_input_ids": ids} if task == "seq2seq" else {}
        seen = []
        model.block.register_forward_hook(lambda _, args, __, seen=seen: seen.append(args[0].shape))
        with torch.no_grad():
            model(input_ids=ids, **wanted)
        assert seen == [(1, 4, 16)]


@pytest.mark.parametrize("site", ["embeddings", 0, "encoder_output"])
@pytest.mark.parametrize("task", ["text-classification", "question-answering"])
def test_the_block_is_at_the_graft_site(task, site):
    torch.manual_seed(0)
    model = control_model(BertModel(bert_config()), "wide-head", 32, task=task, site=site)
    ids = torch.tensor([[1, 5, 6, 2]])
    before = model(input_ids=ids)[0]
    seen = []
    model.block.register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    with torch.no_grad():
        torch.nn.init.normal_(model.block[2].weight)
    assert not torch.allclose(model(input_ids=ids)[0], before)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("task", "change", "said"),
    [
        ("question-answering", {"arms": ["host", "zerogen"]}, "texts that a model writes for each label"),
        ("question-answering", {"arms": ["host", "pool-mean"]}, "pools nothing"),
        ("seq2seq", {"arms": ["host", {"name": "wide-head", "donor": None}]}, "takes its width from a donor"),
    ],
)
def test_arms_that_do_not_fit_the_task_are_refused(task, change, said):
    with pytest.raises(ConfigError, match=said):
        StudyPlan.from_dict({"task": task, "host": "a/host", "donor": "b/llm", "data": ["x"], **change})
