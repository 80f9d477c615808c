"""The model card of a run: metadata with the scores for the Hub, and a page for readers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from layer_surgeon._text import code, markdown
from layer_surgeon._version import __version__
from layer_surgeon._yaml import dump_yaml
from layer_surgeon.finetune.registry import DATASETS
from layer_surgeon.finetune.results import CONFUSION_MATRIX, FinetuneResult
from layer_surgeon.graft.card import (
    base_model_fields,
    describe_origin,
    licence_fields,
    licence_rows,
    licences,
    repos,
    shown_name,
    usage,
)
from layer_surgeon.graft.hosts import read_licence
from layer_surgeon.graft.model_config import SurgeonGraftConfig
from layer_surgeon.hub.published import PLACE_IN_CARD, is_local_path
from layer_surgeon.tasks import get_task, score_title

LOSS_CURVE = "loss_curve.png"
# The Hub's names for metrics, if they differ from ours.
_HUB_METRICS = {"macro_f1": "f1"}
# The Hub requires a data set type, even for data that is not on the Hub.
_LOCAL_DATA = "custom"
_ON_THE_HUB = "https://huggingface.co/datasets/"


def make_card(result: FinetuneResult, model_config: Any) -> str:
    """Make the text of README.md.

    Args:
        result: The finished run.
        model_config: The config of the trained model.
    """
    model = _describe_model(model_config)
    origins = data_origins(result)
    metadata: dict[str, Any] = _metadata(result, model, origins).to_dict()  # type: ignore[no-untyped-call]
    return f"---\n{dump_yaml(metadata)}---\n\n{_body(result, model, origins)}"


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What the card says about the model: a sentence, metadata for the Hub, table rows with licences, and terms."""

    grafted: bool
    origin: str
    metadata: Mapping[str, Any]
    licence_rows: str
    terms: str


def _describe_model(config: Any) -> _Model:
    if isinstance(config, SurgeonGraftConfig):
        stated_licences = [licence for _, licence in licences(config) if licence]
        return _Model(
            grafted=True,
            origin=describe_origin(config),
            metadata={**base_model_fields(config), **licence_fields(stated_licences)},
            licence_rows=licence_rows(config),
            terms=_terms(config),
        )
    name = getattr(config, "_name_or_path", None) or None
    # The licence is stated in the card of the model's repo or folder.
    licence = None if name is None else read_licence(name, getattr(config, "_commit_hash", None))
    base_repos = repos([name])
    display_name = shown_name(name or f"a {config.model_type} model")
    return _Model(
        grafted=False,
        origin=f"{display_name}, a transformers model.",
        metadata={
            **({"base_model": base_repos, "base_model_relation": "finetune"} if base_repos else {}),
            **licence_fields([licence] if licence else []),
        },
        licence_rows=f"| model | {display_name} | {markdown(licence or 'not stated')} |",
        terms=_terms(config),
    )


@dataclass(frozen=True, kw_only=True)
class DataOrigin:
    """The source of the examples of a split.

    Attributes:
        name: Name for the Hub's metadata.
        shown: Description in Markdown, with a link for a data set on the Hub.
        hub_id: The Hub id, for a data set on the Hub.
        subset: The subset of the data set.
        split: The split of the data set.
    """

    name: str
    shown: str
    hub_id: str | None = None
    subset: str | None = None
    split: str | None = None


def data_origins(result: FinetuneResult) -> dict[str, DataOrigin]:
    """Determine the source of each split of a run; paths are reduced to file names."""
    data = result.data
    train = _origin(data["spec"], "train")
    validation = _origin(data.get("validation_spec") or data["spec"], "validation")
    if data["validation_held_out_from_train"]:
        share = f"{result.config.validation_fraction:.0%} of the training data, held out"
        if "stream" in data:
            share = "rows near the start of the training data, held out"
        validation = replace(train, name=f"{train.name} ({share})", shown=f"{share} (seed {result.config.seed})")
    origins = {"train": train, "validation": validation, "test": _origin(data["test_spec"], "test")}
    return {name: origins[name] for name in data["splits"]}


def _origin(spec: Sequence[str], role: str) -> DataOrigin:
    if not spec:
        return DataOrigin(name="data", shown="an object in memory")
    record = DATASETS.get(spec[0]) if len(spec) == 1 else None
    if record is not None:
        split = {"train": record.train, "validation": record.validation, "test": record.test}[role] or record.train
        shown = f"{record.name} ({record.place})"
        if record.hub_id is not None:
            shown = f"[{record.place}]({_ON_THE_HUB}{record.hub_id}), {split}"
        return DataOrigin(name=record.name, shown=shown, hub_id=record.hub_id, subset=record.subset, split=split)
    if len(spec) == 1 and not is_local_path(spec[0]) and repos(spec):
        return DataOrigin(
            name=spec[0], shown=f"[{markdown(spec[0])}]({_ON_THE_HUB}{spec[0]})", hub_id=spec[0], split=role
        )
    names = ", ".join(Path(path).name for path in spec)
    return DataOrigin(name=names, shown=markdown(names))


def _metadata(result: FinetuneResult, model: _Model, origins: Mapping[str, DataOrigin]) -> ModelCardData:
    record = DATASETS.get(str(result.data["name"]))
    task = get_task(result.task)
    tag = task.pipeline_tag if record is None else task.data_kinds.get(record.task, task.pipeline_tag)
    eval_results = [
        EvalResult(
            task_type=tag,
            dataset_type=origins[name].hub_id or _LOCAL_DATA,
            dataset_name=origins[name].name,
            dataset_config=origins[name].subset,
            dataset_split=origins[name].split or name,
            metric_type=_HUB_METRICS.get(score, score),
            metric_name=score_title(score)[:1].upper() + score_title(score)[1:],
            metric_value=round(float(value), 6),
        )
        for name, measured in result.measured.items()
        for score, value in measured.scores.items()
        if score != "loss"
    ]
    hub_ids = [origin.hub_id for origin in origins.values() if origin.hub_id]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=tag,
        tags=["layer-surgeon"],
        datasets=list(dict.fromkeys(hub_ids)) or None,
        model_name=result.path.name,
        eval_results=eval_results,
        ignore_metadata_errors=False,
        **model.metadata,
    )


def _body(result: FinetuneResult, model: _Model, origins: Mapping[str, DataOrigin]) -> str:
    labels = f" The classes: {', '.join(map(markdown, result.label_names))}." if result.label_names else ""
    classes = "\n".join(_class_table(name, measured) for name, measured in result.measured.items())
    if any(getattr(measured, "confusion", None) for measured in result.measured.values()):
        classes += f"\n![Confusion matrix]({CONFUSION_MATRIX})\n"
    return f"""# {markdown(result.path.name)}

{model.origin} Fine-tuned on {markdown(result.data["name"])} for {result.task}.{labels}

## How to use it

{_usage(result, model)}
## Results

{_score_table(result)}

All scores are computed over the whole set. The loss is the mean cross-entropy in nats, without label smoothing.

{classes}
## Data

{_data_table(result, origins)}

Columns: {", ".join(f"{role} {code(name)}" for role, name in result.data["columns"].items() if name)}. {_CUT}

## Training

![Training loss and validation score]({LOSS_CURVE})

{_epoch_table(result)}

The epoch with the best validation {result.config.select_by} was kept.
{result.num_trained_parameters:,} of {result.num_parameters:,} parameters were trained in {result.seconds:.0f} s on
{result.device}.

<details><summary>All settings</summary>

{_setting_table(result)}

</details>

`results.json` contains all of this in machine-readable form, with the versions of the libraries. To repeat the run, use
`surgeon finetune --config run.yaml`.

## Licences

| part | made from | licence |
|---|---|---|
{model.licence_rows}

{model.terms}

Made with layer_surgeon {__version__}.
"""


_CUT = "Cut: number of texts that are longer than the maximum length; only the beginning of these texts was used."


def _terms(config: Any) -> str:
    """Say whose licence terms apply to the weights, which the Hub's metadata field can't express."""
    donor = config.graft if isinstance(config, SurgeonGraftConfig) and config.donor is not None else None
    if donor is None or (donor["donor_init"] == "random" and not donor["train_donor"]):
        return "The weights are derived from this model, so its terms apply to them. The data has its own terms."
    location = "in `model.safetensors` (trained)" if donor["train_donor"] else "in `donor/` (unchanged)"
    return f"""Weights of the donor model are {location}, under the donor model's licence. The other weights are derived
from the host, which has its own licence, by training together with the donor layer. So the terms of both licences apply
to the whole; if they differ, the stricter terms apply. Whether both licences can be met at once was not checked. Some
licences of large models have extra conditions for redistributing derived models, such as a notice, a name, or a copy of
the licence. The data has its own terms."""


def _usage(result: FinetuneResult, model: _Model) -> str:
    import_line = "import layer_surgeon  # registers the model's classes with transformers\n" if model.grafted else ""
    install = "With `pip install layer-surgeon`" if model.grafted else "With transformers alone"
    task = get_task(result.task)
    example = task.example_code if isinstance(task.example, str) else f"({task.example_code})"
    return f"""{install}:

```python
{import_line}{usage(result.task)}
```

To use the lengths and columns from training, `pip install layer-surgeon` and:

```python
from layer_surgeon.finetune import predict

predict("{PLACE_IN_CARD}", [{example}])
```

In a terminal, use `surgeon predict --model {PLACE_IN_CARD}` and `surgeon evaluate {PLACE_IN_CARD} --dataset FILE`.
"""


def _score_table(result: FinetuneResult) -> str:
    scores = list(result.validation.scores)
    return _table(
        ["set", "examples", *(score_title(score) for score in scores)],
        [
            [name, f"{measured.examples:,}", *(f"{measured.scores[score]:.4f}" for score in scores)]
            for name, measured in result.measured.items()
        ],
    )


def _epoch_table(result: FinetuneResult) -> str:
    scores = list(result.validation.scores)
    return _table(
        ["epoch", "training loss", *(f"validation {score_title(score)}" for score in scores)],
        [
            [
                f"{epoch.epoch:g}{' (kept)' if index == result.best_epoch else ''}",
                f"{epoch.training_loss:.4f}",
                *(f"{epoch.scores[score]:.4f}" for score in scores),
            ]
            for index, epoch in enumerate(result.history, start=1)
        ],
    )


def _class_table(name: str, measured: Any) -> str:
    """Make the table of scores by class; empty for a task without classes."""
    per_class = getattr(measured, "per_class", None)
    if not per_class:
        return ""
    rows = [
        [markdown(label), f"{s.precision:.4f}", f"{s.recall:.4f}", f"{s.f1:.4f}", f"{s.support:,}"]
        for label, s in per_class.items()
    ]
    return _table([f"{name}, by class", "precision", "recall", "F1", "examples"], rows) + "\n"


def _data_table(result: FinetuneResult, origins: Mapping[str, DataOrigin]) -> str:
    rows = []
    for name, facts in result.data["splits"].items():
        classes = ", ".join(f"{markdown(label)} {count:,}" for label, count in facts.get("per_class", {}).items())
        cut = result.data.get("truncated", {}).get(name, 0)
        rows.append([name, origins[name].shown, f"{facts['examples']:,}", f"{cut:,}", classes or "-"])
    streamed = ""
    if "stream" in result.data:
        total, examples, steps = result.data["stream"]["rows"], rows[0][2], result.config.max_steps or 0
        rows[0][2] = "not counted" if total is None else f"{total:,}"
        streamed = (
            f"\n\nThe training data was read row by row, for {steps:,} steps. The numbers of cut texts and of classes "
            f"cover only the {examples} examples that were checked before training."
        )
    return _table(["set", "from", "examples", "cut", "classes"], rows, texts=2) + streamed


def _setting_table(result: FinetuneResult) -> str:
    settings = {name: value for name, value in result.as_dict()["config"].items() if value is not None}
    return _table(
        ["setting", "value"], [[name, markdown(dump_yaml(value).split("\n")[0])] for name, value in settings.items()]
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Make a Markdown table. The first `texts` columns contain text; the others are right-aligned numbers."""
    lines = [header, [*["---"] * texts, *["---:"] * (len(header) - texts)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
