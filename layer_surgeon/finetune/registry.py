"""Data sets that can be loaded by name: the paper's, and three that come with this package."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from layer_surgeon.errors import DataError
from layer_surgeon.tasks import DEFAULT_TASK, TASKS


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """The source, columns and labels of a named data set.

    `train`, `validation` and `test` are names of splits. If `validation` is None, 20 % of the training split is held
    out. If `test` is None, there is no test set. `label_names` are ordered by label id. `task` is the name of a task,
    or another word for one (`data_kinds` of its record).
    """

    name: str
    task: str = DEFAULT_TASK
    description: str
    hub_id: str | None = None
    subset: str | None = None
    revision: str | None = None
    packaged_file: str | None = None
    train: str = "train"
    validation: str | None = None
    test: str | None = None
    text_column: str | None = "text"
    text_pair_column: str | None = None
    label_column: str | None = "label"
    label_names: tuple[str, ...] = ()
    unlabelled: int | None = None
    note: str = ""

    @property
    def place(self) -> str:
        """Where the data is, for display: the Hub id with its subset, or the package."""
        if self.hub_id is not None:
            return f"{self.hub_id} ({self.subset})" if self.subset else self.hub_id
        return "comes with layer_surgeon" if self.packaged_file else "no public copy known"

    @property
    def trained_as(self) -> str:
        """The fine-tuning task for this data set."""
        return next(name for name, task in TASKS.items() if self.task in (name, *task.data_kinds))

    def check(self, task: str) -> None:
        """Check that the data set can be loaded for a task.

        Raises:
            DataError: The data set is for another task, or there is no copy to load.
        """
        if task != self.trained_as:
            raise DataError(
                f"{self.name} is a data set for {self.task}, but the model is for {task}. Make a graft for this task "
                f"(surgeon graft HOST --task {self.trained_as}), or choose another data set."
            )
        if self.hub_id is None and self.packaged_file is None:
            raise DataError(f"{self.name} can't be loaded by name. {self.note}")

    def packaged_path(self) -> Path | None:
        """The path of a data set that comes with this package, or None."""
        if self.packaged_file is None:
            return None
        return Path(str(resources.files("layer_surgeon") / "data" / "sentences" / self.packaged_file))


_SENTIMENT = ("negative", "positive")
_NLI = ("entailment", "neutral", "contradiction")

_RECORDS = (
    DatasetRecord(
        name="sst2",
        description="movie review sentences, sentiment (the paper's split: 6,920 / 872 / 1,821)",
        hub_id="SetFit/sst2",
        validation="validation",
        test="test",
        label_names=_SENTIMENT,
    ),
    DatasetRecord(
        name="imdb",
        description="movie reviews, sentiment",
        hub_id="stanfordnlp/imdb",
        test="test",
        label_names=_SENTIMENT,
    ),
    DatasetRecord(
        name="tweet_sentiment",
        description="tweets, sentiment in three classes",
        hub_id="cardiffnlp/tweet_eval",
        subset="sentiment",
        validation="validation",
        test="test",
        label_names=("negative", "neutral", "positive"),
    ),
    DatasetRecord(
        name="tweet_offensive",
        description="tweets, offensive language or not",
        hub_id="cardiffnlp/tweet_eval",
        subset="offensive",
        validation="validation",
        test="test",
        label_names=("non-offensive", "offensive"),
    ),
    DatasetRecord(
        name="cola",
        description="sentences, grammatically acceptable or not",
        hub_id="nyu-mll/glue",
        subset="cola",
        test="validation",
        text_column="sentence",
        label_names=("unacceptable", "acceptable"),
        note="GLUE hides the test labels: its validation split is the test, 20 % of train the validation. "
        "The paper trained on 5,536 sentences and does not say which.",
    ),
    DatasetRecord(
        name="mnli",
        description="sentence pairs, inference in three classes",
        hub_id="nyu-mll/glue",
        subset="mnli",
        validation="validation_matched",
        test="validation_mismatched",
        text_column="premise",
        text_pair_column="hypothesis",
        label_names=_NLI,
    ),
    DatasetRecord(
        name="snli",
        description="sentence pairs, inference in three classes",
        hub_id="stanfordnlp/snli",
        validation="validation",
        test="test",
        text_column="premise",
        text_pair_column="hypothesis",
        label_names=_NLI,
        unlabelled=-1,
        note="Pairs on which the annotators did not agree (label -1) are left out.",
    ),
    DatasetRecord(
        name="cr",
        description="customer reviews, sentiment",
        hub_id="SetFit/CR",
        test="test",
        label_names=_SENTIMENT,
        note="The corpus has no official split; this is the Hub copy's.",
    ),
    DatasetRecord(
        name="nsmc",
        description="Korean movie reviews, sentiment",
        hub_id="e9t/nsmc",
        revision="refs/convert/parquet",
        test="test",
        text_column="document",
        label_names=_SENTIMENT,
        note="The Hub repo is a loading script, which datasets no longer runs; its Parquet copy is read.",
    ),
    DatasetRecord(
        name="filmstarts",
        description="German movie reviews, sentiment",
        label_names=_SENTIMENT,
        note="No copy on the Hub is known to us. Get it from its authors (Guhr et al. 2020) and name the file.",
    ),
    *(
        DatasetRecord(
            name=f"sentences-{domain}",
            description=f"1,000 sentences from {reviews}, sentiment (Kotzias et al. 2015, CC BY 4.0)",
            packaged_file=f"{domain}.csv",
            label_names=_SENTIMENT,
        )
        for domain, reviews in (("amazon", "product reviews"), ("imdb", "film reviews"), ("yelp", "restaurant reviews"))
    ),
    DatasetRecord(
        name="squad",
        task="question-answering",
        description="questions on paragraphs, answered by a span",
        hub_id="rajpurkar/squad",
        validation="validation",
        text_column="question",
        text_pair_column="context",
        label_column="answers",
    ),
    DatasetRecord(
        name="multi30k",
        task="translation",
        description="image captions, English to German",
        hub_id="bentrevett/multi30k",
        validation="validation",
        test="test",
        text_column="en",
        label_column="de",
    ),
    DatasetRecord(
        name="cnn_dailymail",
        task="summarisation",
        description="news articles and their highlights",
        hub_id="abisee/cnn_dailymail",
        subset="3.0.0",
        validation="validation",
        test="test",
        text_column="article",
        label_column="highlights",
    ),
)


def _by_name(records: tuple[DatasetRecord, ...]) -> Mapping[str, DatasetRecord]:
    names = [record.name for record in records]
    if len(set(names)) != len(names):
        raise ValueError(f"Two data sets share a name: {names}")
    return MappingProxyType(dict(zip(names, records, strict=True)))


DATASETS: Mapping[str, DatasetRecord] = _by_name(_RECORDS)


def find_dataset(name: str) -> DatasetRecord | None:
    """Find the record of a named data set; None if the registry does not have the name."""
    return DATASETS.get(name)


def similar_names(name: str) -> list[str]:
    """Find the names in the registry that are most similar to a mistyped `name`, best first."""
    return get_close_matches(name, DATASETS, n=3)
