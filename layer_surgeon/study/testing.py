"""Tests a trained model on every test set of its cell."""

from typing import Any

from layer_surgeon.errors import DataError
from layer_surgeon.finetune import FinetuneConfig, FinetuneResult, evaluate_model
from layer_surgeon.finetune.data import prepare_evaluation
from layer_surgeon.finetune.inference import run_model
from layer_surgeon.finetune.models import label_names_of, load_tokenizer, quiet
from layer_surgeon.finetune.sources import load_data
from layer_surgeon.finetune.tasks import TaskContext, finetune_task
from layer_surgeon.progress import Progress
from layer_surgeon.study.data import SPLIT_SEED, DataSpec, PreparedData
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.models import states_of, tokenizer_of
from layer_surgeon.study.plan import Cell, StudyPlan
from layer_surgeon.study.records import TestScores
from layer_surgeon.tasks import get_task


def measure_cell(cell: Cell, trained: FinetuneResult, folder: StudyFolder, progress: Progress) -> dict[str, TestScores]:
    """Return the scores of a trained model: test set -> scores.

    Classification uses the prepared files. The other tasks read the data sets directly. They use the sources that the
    plan names as test, or else the test split, or else the validation split. Without any of these, they use the part
    that was held out to choose the best epoch.

    Raises:
        DataError: A test set has other labels than the model, or has no part for testing.
    """
    if get_task(cell.task).one_label_per_text:
        return _classify(cell, trained, folder, progress)
    specs = {spec.name: spec for spec in StudyPlan.read(folder.plan).data}
    measured = {name: _measure(cell, trained, specs[name], folder, progress) for name in cell.tests}
    return {
        name: TestScores(examples=metrics.examples, scores=dict(metrics.scores)) for name, metrics in measured.items()
    }


def _classify(cell: Cell, trained: FinetuneResult, folder: StudyFolder, progress: Progress) -> dict[str, TestScores]:
    task = finetune_task(cell.task)
    tests: dict[str, TestScores] = {}
    with quiet():
        tokenizer = load_tokenizer(cell.arm.host, trained.model, tokenizer_of(cell.arm, folder))
        device = next(trained.model.parameters()).device
        names = label_names_of(trained.model)
        for name in cell.tests:
            data = PreparedData.open(folder.data(name))
            # max_eval_samples is for validation only: every cell must be tested on the same examples.
            config = FinetuneConfig.from_settings(trained.config, {**data.columns, "max_eval_samples": None})
            _, examples = prepare_evaluation(str(data.part("test")), names, config, task=task)
            context = TaskContext(tokenizer=tokenizer, model=trained.model, config=config, label_names=names)
            tokens = task.tokenize(examples, context)
            states_of(cell, folder).attach({f"{name} test": tokens}, context, progress, device=device)
            outputs = run_model(task, tokens, context, description=f"Testing on {name}", progress=progress)
            metrics = task.measure(outputs, tokens, examples, context)
            is_correct = outputs[0].argmax(axis=-1) == examples.labels
            tests[name] = TestScores(
                examples=metrics.examples,
                scores=dict(metrics.scores),
                correct="".join("1" if value else "0" for value in is_correct),
            )
    return tests


def _measure(cell: Cell, trained: FinetuneResult, spec: DataSpec, folder: StudyFolder, progress: Progress) -> Any:
    tests_own_data = spec.name == cell.data and not spec.test
    if tests_own_data and trained.config.max_eval_samples is None and spec.max_test_samples is None:
        return trained.test or trained.validation
    test_source = find_test_source(spec, cell, progress)
    if test_source is None and tests_own_data and spec.max_test_samples is None:
        return trained.validation
    if test_source is None:
        raise DataError(
            f"{spec.name} has no test and no validation part, so a model trained on {cell.data} can't be tested on it. "
            "Name a test part in the plan: {name: ..., train: ..., test: ...}."
        )
    # The seed chooses the examples, which are the same for every training.
    limit = {"max_eval_samples": spec.max_test_samples, "seed": SPLIT_SEED}
    config = FinetuneConfig.from_settings(trained.config, {**spec.columns, **limit})
    with quiet():
        tokenizer = load_tokenizer(cell.arm.host, trained.model, tokenizer_of(cell.arm, folder))
    sources, split = test_source
    evaluation = evaluate_model(
        trained.model, list(sources), split=split, config=config, tokenizer=tokenizer, progress=progress
    )
    return evaluation.metrics


def find_test_source(spec: DataSpec, cell: Cell, progress: Progress) -> tuple[tuple[str, ...], str | None] | None:
    """Return the sources of the test examples and the name of their split; None if there are none."""
    if spec.test:
        return spec.test, None
    raw = load_data(list(spec.train), progress, task=cell.task)
    if raw.test is not None:
        return spec.train, raw.split_name("test")
    if spec.validation:
        return spec.validation, load_data(list(spec.validation), progress, task=cell.task).split_name("validation")
    return None if raw.validation is None else (spec.train, raw.split_name("validation"))
