"""`Task`: the record of a task, and the list of all records."""

import importlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from layer_surgeon.errors import ConfigError
from layer_surgeon.tasks.roles import ColumnRoles
from layer_surgeon.tasks.scores import LOSS, Score

HostKind = Literal["encoder", "decoder", "encoder-decoder"]
# Packages that define tasks list them under this name, so that the command line and the processes of a study know them.
ENTRY_POINTS = "layer_surgeon.tasks"


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that the other packages need to know about a task.

    Classes are given as `module:name` and imported when they are first used, because a record must not import torch.

    Attributes:
        name: The name, as in `--task`.
        model_class: The subclass of `GraftedModel`, as `module:name`.
        finetune_class: The subclass of `FinetuneTask`, as `module:name`; None if the task can't be fine-tuned.
        auto: The transformers Auto class that loads a model for the task.
        plain_models: The name of transformers' table of model classes (`MODEL_FOR_..._MAPPING_NAMES`) by which the task
            of a model that is not a graft is recognised; None if it says too little.
        pipeline_tag: The Hub's name for the task.
        has_pipeline: Whether transformers has a pipeline of that name.
        peft_type: peft's name for the task; None if it can't be fine-tuned.
        hosts: The supported kinds of hosts.
        pools: Whether the states of a text's tokens are pooled to one vector.
        default_pooling: The default; None: by the kind of host. Only for a task that pools.
        labels: Whether the task has labels that the user names.
        head: Whether the graft has its own head; otherwise it keeps the host's, or there is none.
        generates: Whether the task generates text, with the whole host and its language head.
        causal: Whether a token must not see later tokens.
        outputs: What an exported model returns, and whether it is per token.
        targets: The inputs of the model's `forward` that a training step needs, and whether they are per token.
        scores: The scores of a set. The first one is the default, for the best epoch (of those that can select it) and
            for the comparison of a study.
        columns: How to find the columns of a data set.
        unit: The word for examples in messages.
        one_label_per_text: Whether an example is a text, or a pair, with one label. A study prepares such data itself,
            records which examples are correct, and can have a model write texts for each label.
        data_kinds: Other words for the task in the list of data sets -> the Hub's name for each.
        example: The text, or the two texts, of an input for `predict`, for model cards.
        shown: Column titles of a table of predictions -> attributes of a prediction.
    """

    name: str
    # Classes
    model_class: str
    finetune_class: str | None = None
    auto: str
    plain_models: str | None = None
    pipeline_tag: str
    has_pipeline: bool = True
    peft_type: str | None = None
    # The graft
    hosts: tuple[HostKind, ...] = ("encoder", "decoder", "encoder-decoder")
    pools: bool = False
    default_pooling: str | None = None
    labels: bool = False
    head: bool = False
    generates: bool = False
    causal: bool = False
    outputs: Mapping[str, bool] = field(default_factory=dict)
    targets: Mapping[str, bool] = field(default_factory=dict)
    # Fine-tuning and studies
    scores: tuple[Score, ...] = ()
    columns: ColumnRoles = ColumnRoles(text=("text",))
    unit: str = "texts"
    one_label_per_text: bool = False
    data_kinds: Mapping[str, str] = field(default_factory=dict)
    # For readers
    example: tuple[str, ...] = ("A text.",)
    shown: Mapping[str, str] = field(default_factory=dict)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scores, the default first."""
        return tuple(score.name for score in self.scores)

    @property
    def selections(self) -> tuple[str, ...]:
        """Names of the scores that can select the best epoch, the default first."""
        return tuple(score.name for score in self.scores if score.selects)

    def score(self, name: str) -> Score:
        """Return one of the scores."""
        return next(score for score in self.scores if score.name == name)

    @property
    def needs_text_vector(self) -> bool:
        """Whether the task can't do without pooling, because all it returns is per text."""
        return self.pools and not any(self.outputs.values())

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the grafted model reads with an encoder and writes with a decoder."""
        return self.generates and not self.causal

    def load_model_class(self) -> Any:
        """Import the subclass of `GraftedModel`."""
        return _load(self.model_class)

    def load_finetune_class(self) -> Any:
        """Import the subclass of `FinetuneTask`.

        Raises:
            ConfigError: The task can't be fine-tuned.
        """
        if self.finetune_class is None:
            raise ConfigError(f"{self.name} can't be fine-tuned. Choose one of {', '.join(finetuned_tasks())}.")
        return _load(self.finetune_class)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class _Tasks(Mapping[str, Task]):
    """All tasks by name. Those of other packages are looked up when a name is unknown or all are needed."""

    def __init__(self) -> None:
        self.registered: dict[str, Task] = {}
        self._is_complete = False

    def __getitem__(self, name: str) -> Task:
        if name not in self.registered:
            self._complete()
        return self.registered[name]

    def __iter__(self) -> Iterator[str]:
        self._complete()
        return iter(self.registered)

    def __len__(self) -> int:
        self._complete()
        return len(self.registered)

    def add(self, task: Task) -> None:
        """Add a task; see `register_task`."""
        if self.registered.setdefault(task.name, task) is not task:
            raise ConfigError(f"There is already a task {task.name!r}. Give the new one another name.")

    def _complete(self) -> None:
        """Add the tasks of other packages, once. A package that can't be used is left out with a warning."""
        if self._is_complete:
            return
        self._is_complete = True  # a package may itself need the list
        for entry_point in entry_points(group=ENTRY_POINTS):
            try:
                self.add(_read(entry_point))
            except Exception as error:  # noqa: BLE001  # any code of another package runs here
                warnings.warn(
                    f"The task {entry_point.name} of an installed package ({entry_point.value}) can't be used: {error} "
                    "Update the package, or uninstall it.",
                    stacklevel=2,
                )


def _read(entry_point: EntryPoint) -> Task:
    task = entry_point.load()
    if not isinstance(task, Task):
        raise ConfigError(f"It is a {type(task).__name__}, not a Task.")
    return task


_TASKS = _Tasks()
TASKS: Mapping[str, Task] = _TASKS


def register_task(task: Task) -> None:
    """Add a task in this process.

    Other processes, such as those of a study, know a task if a package lists it as an entry point.

    Raises:
        ConfigError: There is another task of that name.
    """
    _TASKS.add(task)


def get_task(name: str) -> Task:
    """Return the record of a task.

    Raises:
        ConfigError: There is no such task.
    """
    try:
        return TASKS[name]
    except KeyError as error:
        similar = get_close_matches(name, TASKS, n=1)
        hint = f" Did you mean {similar[0]!r}?" if similar else ""
        raise ConfigError(f"There is no task {name!r}.{hint} The tasks are: {', '.join(TASKS)}.") from error


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks."""
    return tuple(TASKS)


def finetuned_tasks() -> tuple[str, ...]:
    """Return the names of the tasks that can be fine-tuned."""
    return tuple(name for name, task in TASKS.items() if task.finetune_class is not None)


def all_scores() -> dict[str, Score]:
    """Return the scores of all tasks by name, and the loss, which all tasks have, last."""
    scores = {score.name: score for task in TASKS.values() for score in task.scores}
    return {name: scores[name] for name in sorted(scores, key=LOSS.name.__eq__)}


def score_title(name: str) -> str:
    """Return the title of a score, for tables and messages."""
    return all_scores()[name].title


def selection_names() -> tuple[str, ...]:
    """Return the names of the scores that can select the best epoch."""
    return tuple(name for name, score in all_scores().items() if score.selects)
