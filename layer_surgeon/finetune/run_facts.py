"""The facts about a run that its model card states."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from layer_surgeon.finetune.metrics import Metrics
from layer_surgeon.finetune.registry import DATASETS
from layer_surgeon.finetune.results import CONFUSION_MATRIX, FinetuneResult
from layer_surgeon.graft.graft_facts import graft_origin
from layer_surgeon.graft.hosts import read_licence
from layer_surgeon.graft.model_config import SurgeonGraftConfig
from layer_surgeon.hub.origin import Origin, SourceModel, repo_ids
from layer_surgeon.hub.published import is_local_path
from layer_surgeon.hub.run_card import DataOrigin, DataSplit, Epoch, Measured, RunCard, Stream
from layer_surgeon.tasks import get_task

LOSS_CURVE = "loss_curve.png"
_ON_THE_HUB = "https://huggingface.co/datasets/"


def make_card(result: FinetuneResult, model_config: Any) -> str:
    """Make the text of README.md.

    Args:
        result: The finished run.
        model_config: The config of the trained model.
    """
    record = DATASETS.get(str(result.data["name"]))
    task = get_task(result.task)
    tag = task.pipeline_tag if record is None else task.data_kinds.get(record.task, task.pipeline_tag)
    stream = result.data.get("stream")
    card = RunCard(
        name=result.path.name,
        origin=_model_origin(model_config),
        task=task,
        pipeline_tag=tag,
        data=result.data["name"],
        columns=result.data["columns"],
        splits=_splits(result),
        stream=None if stream is None else Stream(rows=stream["rows"], steps=result.config.max_steps or 0),
        labels=result.label_names,
        measured={name: _measured(metrics) for name, metrics in result.measured.items()},
        epochs=[
            Epoch(epoch=epoch.epoch, training_loss=epoch.training_loss, scores=epoch.scores) for epoch in result.history
        ],
        best_epoch=result.best_epoch,
        select_by=str(result.config.select_by),
        loss_curve=LOSS_CURVE,
        confusion_matrix=CONFUSION_MATRIX
        if any(getattr(metrics, "confusion", None) for metrics in result.measured.values())
        else None,
        num_parameters=result.num_parameters,
        num_trained_parameters=result.num_trained_parameters,
        seconds=result.seconds,
        device=result.device,
        settings={name: value for name, value in result.as_dict()["config"].items() if value is not None},
    )
    return card.render()


def _model_origin(config: Any) -> Origin:
    if isinstance(config, SurgeonGraftConfig):
        return graft_origin(config)
    name = getattr(config, "_name_or_path", None) or None
    # The licence is stated in the card of the model's repo or folder.
    licence = None if name is None else read_licence(name, getattr(config, "_commit_hash", None))
    return Origin(models=(SourceModel(part="model", name=name or f"a {config.model_type} model", licence=licence),))


def _measured(metrics: Metrics) -> Measured:
    per_class = getattr(metrics, "per_class", None) or {}
    return Measured(
        examples=metrics.examples,
        scores=metrics.scores,
        per_class={label: (s.precision, s.recall, s.f1, s.support) for label, s in per_class.items()},
    )


def _splits(result: FinetuneResult) -> dict[str, DataSplit]:
    origins, cut = data_origins(result), result.data.get("truncated", {})
    return {
        name: DataSplit(
            origin=origins[name],
            examples=facts["examples"],
            cut=cut.get(name, 0),
            per_class=facts.get("per_class", {}),
        )
        for name, facts in result.data["splits"].items()
    }


def data_origins(result: FinetuneResult) -> dict[str, DataOrigin]:
    """Determine the source of each split of a run; paths are reduced to file names."""
    data = result.data
    train = _origin(data["spec"], "train")
    validation = _origin(data.get("validation_spec") or data["spec"], "validation")
    if data["validation_held_out_from_train"]:
        share = f"{result.config.validation_fraction:.0%} of the training data, held out"
        if "stream" in data:
            share = "rows near the start of the training data, held out"
        text = f"{share} (seed {result.config.seed})"
        validation = replace(train, name=f"{train.name} ({share})", text=text, url=None, url_note="")
    origins = {"train": train, "validation": validation, "test": _origin(data["test_spec"], "test")}
    return {name: origins[name] for name in data["splits"]}


def _origin(spec: Sequence[str], role: str) -> DataOrigin:
    if not spec:
        return DataOrigin(name="data", text="an object in memory")
    record = DATASETS.get(spec[0]) if len(spec) == 1 else None
    if record is not None:
        split = {"train": record.train, "validation": record.validation, "test": record.test}[role] or record.train
        if record.hub_id is None:
            return DataOrigin(name=record.name, text=f"{record.name} ({record.place})", split=split)
        return DataOrigin(
            name=record.name,
            text=record.place,
            url=f"{_ON_THE_HUB}{record.hub_id}",
            url_note=f", {split}",
            hub_id=record.hub_id,
            subset=record.subset,
            split=split,
        )
    if len(spec) == 1 and not is_local_path(spec[0]) and repo_ids(spec):
        return DataOrigin(name=spec[0], text=spec[0], url=f"{_ON_THE_HUB}{spec[0]}", hub_id=spec[0], split=role)
    names = ", ".join(Path(path).name for path in spec)
    return DataOrigin(name=names, text=names)
