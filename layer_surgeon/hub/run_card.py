"""The model card of a run: metadata with the scores for the Hub, and a page for readers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from layer_surgeon._yaml import dump_yaml
from layer_surgeon.hub.origin import Origin
from layer_surgeon.hub.rendering import render_card
from layer_surgeon.tasks import Task, score_title

# The Hub's names for metrics, if they differ from ours.
_HUB_METRICS = {"macro_f1": "f1"}
# The Hub requires a data set type, even for data that is not on the Hub.
_LOCAL_DATA = "custom"


@dataclass(frozen=True, kw_only=True)
class DataOrigin:
    """The source of the examples of a split.

    Attributes:
        name: Name for the Hub's metadata.
        text: Description for readers.
        url: Link of the text; None if the data is not on the Hub.
        url_note: What follows the link.
        hub_id: The Hub id, for a data set on the Hub.
        subset: The subset of the data set.
        split: The split of the data set.
    """

    name: str
    text: str
    url: str | None = None
    url_note: str = ""
    hub_id: str | None = None
    subset: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataSplit:
    """One split of the data: its source, its numbers of examples, of cut texts, and of examples by class."""

    origin: DataOrigin
    examples: int
    cut: int
    per_class: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The scores on one split. `per_class` has precision, recall, F1 and number of examples by class."""

    examples: int
    scores: Mapping[str, float]
    per_class: Mapping[str, tuple[float, float, float, int]]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The end of an epoch: passes over the data so far, training loss, and scores on the validation split."""

    epoch: float
    training_loss: float
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Training data that was read row by row: number of rows, None if they were not counted, and training steps."""

    rows: int | None
    steps: int


@dataclass(frozen=True, kw_only=True)
class RunCard:
    """Facts about a finished run.

    Attributes:
        name: The run's name.
        origin: The models that the trained model was made from.
        task: The task, which says how the model is loaded and called.
        pipeline_tag: The Hub's name for what the data teaches.
        data: Name of the data set.
        columns: Column names by role.
        splits: The splits of the data by name, train first.
        stream: Facts about streamed training data.
        labels: Class names; empty for a task without classes.
        measured: The scores by split, validation first.
        epochs: All epochs.
        best_epoch: The epoch that was kept, counted from 1.
        select_by: The score that chose it.
        loss_curve: File name of the chart of the training.
        confusion_matrix: File name of the confusion matrix; None if there is none.
        num_parameters: Number of parameters.
        num_trained_parameters: Number of trained parameters.
        seconds: Duration of the training.
        device: The device.
        settings: The settings by name.
    """

    name: str
    origin: Origin
    task: Task
    pipeline_tag: str
    data: str
    columns: Mapping[str, str | None]
    splits: Mapping[str, DataSplit]
    stream: Stream | None
    labels: Sequence[str]
    measured: Mapping[str, Measured]
    epochs: Sequence[Epoch]
    best_epoch: int
    select_by: str
    loss_curve: str
    confusion_matrix: str | None
    num_parameters: int
    num_trained_parameters: int
    seconds: float
    device: str
    settings: Mapping[str, Any]

    def render(self) -> str:
        """Return the text of README.md."""
        metadata: dict[str, Any] = _metadata(self).to_dict()  # type: ignore[no-untyped-call]  # huggingface_hub has no types here
        # YAML shows long texts on several lines.
        settings = {name: dump_yaml(value).split("\n")[0] for name, value in self.settings.items()}
        return render_card("run.md.jinja", metadata, card=self, origin=self.origin, settings=settings)


def _metadata(card: RunCard) -> ModelCardData:
    origins = {name: split.origin for name, split in card.splits.items()}
    eval_results = [
        EvalResult(
            task_type=card.pipeline_tag,
            dataset_type=origins[name].hub_id or _LOCAL_DATA,
            dataset_name=origins[name].name,
            dataset_config=origins[name].subset,
            dataset_split=origins[name].split or name,
            metric_type=_HUB_METRICS.get(score, score),
            metric_name=score_title(score)[:1].upper() + score_title(score)[1:],
            metric_value=round(float(value), 6),
        )
        for name, measured in card.measured.items()
        for score, value in measured.scores.items()
        if score != "loss"
    ]
    hub_ids = [origin.hub_id for origin in origins.values() if origin.hub_id]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=card.pipeline_tag,
        tags=["layer-surgeon"],
        datasets=list(dict.fromkeys(hub_ids)) or None,
        model_name=card.name,
        eval_results=eval_results,
        ignore_metadata_errors=False,
        **card.origin.metadata,
    )
