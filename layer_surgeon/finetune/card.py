"""The model card of a run: the Hub's metadata with the measured values, and a page for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from layer_surgeon._version import __version__
from layer_surgeon._yaml import dump_yaml
from layer_surgeon.finetune.metrics import TITLES
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
from layer_surgeon.graft.configuration import SurgeonGraftConfig
from layer_surgeon.graft.hosts import read_licence
from layer_surgeon.graft.published import PLACE_IN_CARD, is_local_path
from layer_surgeon.graft.tasks import TASKS

LOSS_CURVE = "loss_curve.png"
# The Hub's names where they are others than ours.
_HUB_METRICS = {"macro_f1": "f1"}
_PIPELINE_TAGS = {"translation": "translation", "summarisation": "summarization"}
# The Hub wants a kind of data where it is in no repo.
_LOCAL_DATA = "custom"
_ON_THE_HUB = "https://huggingface.co/datasets/"


def make_card(result: FinetuneResult, model_config: Any) -> str:
    """The text of README.md.

    Args:
        result: The finished run.
        model_config: The trained model's config.
    """
    model = _describe_model(model_config)
    origins = data_origins(result)
    return f"---\n{_metadata(result, model, origins).to_yaml()}\n---\n\n{_body(result, model, origins)}"


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What the card says of the model: in a sentence, in the Hub's metadata, and of licences in rows of a table."""

    grafted: bool
    origin: str
    metadata: Mapping[str, Any]
    licence_rows: str
    terms: str


def _describe_model(config: Any) -> _Model:
    if isinstance(config, SurgeonGraftConfig):
        stated = [licence for _, licence in licences(config) if licence]
        return _Model(
            grafted=True,
            origin=describe_origin(config),
            metadata={**base_model_fields(config), **licence_fields(stated)},
            licence_rows=licence_rows(config),
            terms=_terms(config),
        )
    name = getattr(config, "_name_or_path", None) or None
    # Where the repo or the folder was read for the run, its card says the licence.
    licence = None if name is None else read_licence(name, getattr(config, "_commit_hash", None))
    base = repos([name])
    shown = shown_name(name) if name else f"a {config.model_type} model"
    return _Model(
        grafted=False,
        origin=f"{shown}, a transformers model.",
        metadata={
            **({"base_model": base, "base_model_relation": "finetune"} if base else {}),
            **licence_fields([licence] if licence else []),
        },
        licence_rows=f"| model | {shown} | {licence or 'not stated'} |",
        terms=_terms(config),
    )


@dataclass(frozen=True, kw_only=True)
class DataOrigin:
    """Where the examples of a split come from.

    Attributes:
        name: What to call it.
        shown: The same for people, with a link where there is one.
        hub_id: The data set on the Hub, if it is one.
        subset: Its subset.
        split: Its split.
    """

    name: str
    shown: str
    hub_id: str | None = None
    subset: str | None = None
    split: str | None = None


def data_origins(result: FinetuneResult) -> dict[str, DataOrigin]:
    """Of each split of a run, where it comes from; paths with their last part only."""
    data = result.data
    train = _origin(data["spec"], "train")
    validation = _origin(data.get("validation_spec") or data["spec"], "validation")
    if data["validation_held_out_from_train"]:
        share = f"{result.config.validation_fraction:.0%} of the training data, held out"
        if "stream" in data:
            share = "some of the first rows of the training data, held out"
        validation = replace(train, name=f"{train.name} ({share})", shown=f"{share} (seed {result.config.seed})")
    origins = {"train": train, "validation": validation, "test": _origin(data["test_spec"], "test")}
    return {name: origins[name] for name in data["splits"]}


def _origin(spec: Sequence[str], role: str) -> DataOrigin:
    if not spec:
        return DataOrigin(name="data", shown="handed over in memory")
    record = DATASETS.get(spec[0]) if len(spec) == 1 else None
    if record is not None:
        split = {"train": record.train, "validation": record.validation, "test": record.test}[role] or record.train
        shown = f"{record.name} ({record.place})"
        if record.hub_id is not None:
            shown = f"[{record.place}]({_ON_THE_HUB}{record.hub_id}), {split}"
        return DataOrigin(name=record.name, shown=shown, hub_id=record.hub_id, subset=record.subset, split=split)
    if len(spec) == 1 and not is_local_path(spec[0]) and repos(spec):
        return DataOrigin(name=spec[0], shown=f"[{spec[0]}]({_ON_THE_HUB}{spec[0]})", hub_id=spec[0], split=role)
    names = ", ".join(Path(path).name for path in spec)
    return DataOrigin(name=names, shown=names)


def _metadata(result: FinetuneResult, model: _Model, origins: Mapping[str, DataOrigin]) -> ModelCardData:
    record = DATASETS.get(str(result.data["name"]))
    tag = _PIPELINE_TAGS.get(str(record.task) if record is not None else "", TASKS[result.task].pipeline_tag)
    entries = [
        EvalResult(
            task_type=tag,
            dataset_type=origins[name].hub_id or _LOCAL_DATA,
            dataset_name=origins[name].name,
            dataset_config=origins[name].subset,
            dataset_split=origins[name].split or name,
            metric_type=_HUB_METRICS.get(score, score),
            metric_name=TITLES[score][:1].upper() + TITLES[score][1:],
            metric_value=round(float(value), 6),
        )
        for name, measured in result.measured.items()
        for score, value in measured.scores.items()
        if score != "loss"
    ]
    known = [origin.hub_id for origin in origins.values() if origin.hub_id]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=tag,
        tags=["layer-surgeon"],
        datasets=list(dict.fromkeys(known)) or None,
        model_name=result.path.name,
        eval_results=entries,
        ignore_metadata_errors=False,
        **model.metadata,
    )


def _body(result: FinetuneResult, model: _Model, origins: Mapping[str, DataOrigin]) -> str:
    labels = f" The classes: {', '.join(result.label_names)}." if result.label_names else ""
    classes = "\n".join(_class_table(name, measured) for name, measured in result.measured.items())
    if any(getattr(measured, "confusion", None) for measured in result.measured.values()):
        classes += f"\n![Confusion matrix]({CONFUSION_MATRIX})\n"
    return f"""# {result.path.name}

{model.origin} Fine-tuned on {result.data["name"]} for {result.task}.{labels}

## How to use it

{_usage(result, model)}
## Results

{_score_table(result)}

Over the whole set. The loss is the mean cross-entropy in nats, without label smoothing.

{classes}
## Data

{_data_table(result, origins)}

Columns: {", ".join(f"{role} `{name}`" for role, name in result.data["columns"].items() if name)}. {_CUT}

## Training

![Training loss and validation score]({LOSS_CURVE})

{_epoch_table(result)}

The epoch with the best validation {result.config.select_by} was kept.
{result.num_trained_parameters:,} of {result.num_parameters:,} parameters were trained, on {result.device}, in
{result.seconds:.0f} s.

<details><summary>All settings</summary>

{_setting_table(result)}

</details>

`results.json` holds all of this for programs, with the versions of the libraries; `surgeon finetune --config run.yaml`
does it again.

## Licences

| part | made from | licence |
|---|---|---|
{model.licence_rows}

{model.terms}

Made with layer_surgeon {__version__}.
"""


_CUT = "Cut: texts longer than the maximum length, of which only the beginning was read."


def _terms(config: Any) -> str:
    """Whose terms apply, by whose weights there are: the Hub's field of metadata can't say it."""
    donor = config.graft if isinstance(config, SurgeonGraftConfig) and config.donor is not None else None
    if donor is None or (donor["donor_init"] == "random" and not donor["train_donor"]):
        return "The weights were made from this model's, and its terms apply to them. The data has terms of its own."
    where = "in `model.safetensors`, trained along" if donor["train_donor"] else "in `donor/`, unchanged"
    return f"""Weights of the donor model lie {where}, and are under its licence; the others were made from the host's,
which are under its own, by training together with the donor's. So the terms of both apply to the whole, and where they
differ, the stricter ones. Whether both can be met at once was not checked. Some licences of large models ask for more
of whoever passes on what was made with them, such as a notice, a name, or a copy of the licence. The data has terms of
its own."""


def _usage(result: FinetuneResult, model: _Model) -> str:
    needed = "import layer_surgeon  # makes the model's classes known to transformers\n" if model.grafted else ""
    install = "With `pip install layer-surgeon`" if model.grafted else "With transformers alone"
    example = _PREDICT[result.task]
    return f"""{install}:

```python
{needed}{usage(result.task)}
```

With the lengths and columns of the training, by `pip install layer-surgeon`:

```python
from layer_surgeon.finetune import predict

predict("{PLACE_IN_CARD}", [{example}])
```

`surgeon predict --model {PLACE_IN_CARD}` and `surgeon evaluate {PLACE_IN_CARD} --dataset FILE` do so in a terminal.
"""


_PREDICT = {
    "text-classification": '"A text."',
    "token-classification": '"A text."',
    "question-answering": '("A question?", "A text with the answer.")',
    "seq2seq": '"A text."',
    "causal-lm": '"The beginning of a text"',
}


def _score_table(result: FinetuneResult) -> str:
    scores = list(result.validation.scores)
    return _table(
        ["set", "examples", *(TITLES[score] for score in scores)],
        [
            [name, f"{measured.examples:,}", *(f"{measured.scores[score]:.4f}" for score in scores)]
            for name, measured in result.measured.items()
        ],
    )


def _epoch_table(result: FinetuneResult) -> str:
    scores = list(result.validation.scores)
    return _table(
        ["epoch", "training loss", *(f"validation {TITLES[score]}" for score in scores)],
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
    """Nothing for a task without classes."""
    per_class = getattr(measured, "per_class", None)
    if not per_class:
        return ""
    rows = [
        [label, f"{s.precision:.4f}", f"{s.recall:.4f}", f"{s.f1:.4f}", f"{s.support:,}"]
        for label, s in per_class.items()
    ]
    return _table([f"{name}, by class", "precision", "recall", "F1", "examples"], rows) + "\n"


def _data_table(result: FinetuneResult, origins: Mapping[str, DataOrigin]) -> str:
    rows = []
    for name, facts in result.data["splits"].items():
        classes = ", ".join(f"{label} {count:,}" for label, count in facts.get("per_class", {}).items())
        cut = result.data.get("truncated", {}).get(name, 0)
        rows.append([name, origins[name].shown, f"{facts['examples']:,}", f"{cut:,}", classes or "-"])
    streamed = ""
    if "stream" in result.data:
        total, examples, steps = result.data["stream"]["rows"], rows[0][2], result.config.max_steps or 0
        rows[0][2] = "not counted" if total is None else f"{total:,}"
        streamed = (
            f"\n\nThe training data was read row by row, for {steps:,} steps; what was cut, and the classes, are those "
            f"of the {examples} examples that were checked before training."
        )
    return _table(["set", "from", "examples", "cut", "classes"], rows, texts=2) + streamed


def _setting_table(result: FinetuneResult) -> str:
    said = {name: value for name, value in result.as_dict()["config"].items() if value is not None}
    return _table(["setting", "value"], [[name, dump_yaml(value).split("\n")[0]] for name, value in said.items()])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Markdown; behind the first `texts` columns all hold numbers."""
    lines = [header, [*["---"] * texts, *["---:"] * (len(header) - texts)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)
