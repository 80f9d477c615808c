"""The records of the tasks: complete, consistent, and the only place where a task is named."""

import ast
import re
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import peft
import pytest
import transformers
from transformers.models.auto import modeling_auto

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.config import EXTRA_METRICS
from layer_surgeon.finetune.tasks import FinetuneTask, finetune_task
from layer_surgeon.graft import GraftedModel
from layer_surgeon.tasks import DEFAULT_TASK, TASKS, Task, finetuned_tasks, get_task, register_task, selection_names
from layer_surgeon.tasks import task as task_module

OTHER = replace(TASKS["seq2seq"], unit="words")
ROOT = Path(__file__).parents[2]
# Files other than the record that name a task, each with its reason.
MAY_NAME = {
    "layer_surgeon/finetune/registry.py": "named data sets, and the task that each is for",
}


def texts_in(path):
    """The texts in a file's code, without docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


def test_a_task_is_named_in_its_own_file_only():
    naming = {}
    for path in [*ROOT.glob("layer_surgeon/**/*.py"), *ROOT.glob("cli/*.py")]:
        texts = texts_in(path)
        for name in TASKS:
            # `seq2seq` is also a part of module names.
            if any(name == text or ("-" in name and name in text) for text in texts):
                naming.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    assert set(naming) == set(TASKS)
    for name, files in naming.items():
        assert files - set(MAY_NAME) == {f"layer_surgeon/tasks/{name.replace('-', '_')}.py"}, name
    assert set().union(*naming.values()) >= set(MAY_NAME), "an exception that nothing needs"


@pytest.mark.parametrize("name", TASKS)
def test_what_a_record_names_exists(name):
    task = TASKS[name]
    assert issubclass(task.load_model_class(), GraftedModel)
    assert hasattr(transformers, task.auto)
    assert task.plain_models is None or getattr(modeling_auto, task.plain_models)
    assert task.has_pipeline == (task.pipeline_tag in transformers.pipelines.PIPELINE_REGISTRY.get_supported_tasks())
    assert not task.generates or len(task.hosts) == 1
    assert not (task.generates and task.outputs), "text is generated step by step, and can't be exported"


@pytest.mark.parametrize("name", finetuned_tasks())
def test_a_task_that_can_be_fine_tuned_has_what_that_needs(name):
    task = TASKS[name]
    assert isinstance(finetune_task(name), FinetuneTask)
    assert task.peft_type in peft.TaskType.__members__
    assert task.targets
    assert task.selections
    assert task.shown
    assert task.score("loss").lower_is_better


def test_scores():
    assert get_task("causal-lm").selections == ("loss",)
    assert get_task("token-classification").score_names == ("f1", "precision", "recall", "accuracy", "loss")
    assert selection_names() == ("accuracy", "macro_f1", "f1", "exact_match", "bleu", "rouge_l", "meteor", "loss")
    assert set(EXTRA_METRICS) <= set(get_task("seq2seq").score_names)


def test_the_default_is_the_papers_task():
    assert DEFAULT_TASK == next(iter(TASKS)) == "text-classification"


def test_a_second_task_of_the_same_name_is_refused():
    with pytest.raises(ConfigError, match="There is already a task 'seq2seq'. Give the new one another name."):
        register_task(OTHER)
    register_task(TASKS["seq2seq"])


def test_an_unknown_name_is_an_error_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"no task 'seq2sek'. Did you mean 'seq2seq'\? The tasks are: text-class"):
        get_task("seq2sek")
    with pytest.raises(ConfigError, match="There is no task 'x'. The tasks are: text-classification, "):
        get_task("x")


def test_a_task_without_a_class_for_it_is_not_fine_tuned():
    with pytest.raises(ConfigError, match="feature-extraction can't be fine-tuned. Choose one of text-class"):
        finetune_task("feature-extraction")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no.such.module:TASK", "No module named 'no' Update the package, or uninstall it."),
        ("json:dumps", "It is a function, not a Task. Update"),
        ("tests.tasks.test_records:OTHER", "There is already a task 'seq2seq'."),
    ],
)
def test_a_package_that_cannot_be_used_is_left_out(value, reason, monkeypatch):
    broken = EntryPoint(name="stars", value=value, group=task_module.ENTRY_POINTS)
    good = EntryPoint(name="good", value="layer_surgeon.tasks.causal_lm:CAUSAL_LM", group=task_module.ENTRY_POINTS)
    monkeypatch.setattr(task_module, "entry_points", lambda group: [broken, good])
    tasks = task_module._Tasks()
    tasks.add(TASKS["seq2seq"])
    message = f"The task stars of an installed package ({value}) can't be used: {reason}"
    with pytest.warns(UserWarning, match=re.escape(message)):
        assert list(tasks) == ["seq2seq", "causal-lm"]


def test_other_packages_are_only_asked_when_needed(monkeypatch):
    asked = []
    monkeypatch.setattr(task_module, "entry_points", lambda group: asked.append(group) or [])
    tasks = task_module._Tasks()
    tasks.add(TASKS["seq2seq"])
    assert tasks["seq2seq"].generates
    assert asked == []
    assert "b" not in tasks
    assert len(tasks) == 1
    assert asked == ["layer_surgeon.tasks"]


def test_a_task_that_pools_can_do_without_if_it_returns_something_per_token():
    made = {"name": "x", "model_class": "a:b", "auto": "AutoModel", "pipeline_tag": "x"}
    assert Task(**made, pools=True, outputs={"logits": False}).needs_text_vector
    assert not Task(**made, pools=True, outputs={"states": True, "vector": False}).needs_text_vector
    assert not Task(**made, outputs={"logits": False}).needs_text_vector
