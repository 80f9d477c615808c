"""Summarise the data for the user before training."""

from collections.abc import Mapping

from layer_surgeon._format import list_names
from layer_surgeon.finetune.config import RATES, FinetuneConfig
from layer_surgeon.finetune.data import TaskData
from layer_surgeon.finetune.tokenization import TokenizedDataset

# Classes with a smaller share than this are named, because accuracy alone says little about them.
_RARE = 0.05
_MOST_CLASSES = 12
# If at least this many first rows have one class, that is not by chance.
_ENOUGH = 50
# Outside of this range, fine-tuning learns nothing or ends in NaN.
_LOWEST_RATE, _HIGHEST_RATE = 1e-6, 1e-2


def summary(data: TaskData, sets: Mapping[str, TokenizedDataset], config: FinetuneConfig) -> list[str]:
    """Describe the sizes, the class balance and the truncation of the splits, in one line each."""
    sizes = ", ".join(
        f"{_size(data) if name == 'train' else f'{len(part):,}'} {name}" for name, part in data.splits.items()
    )
    held_out = f"; validation is {config.validation_fraction:.0%} of the training data" if data.held_out else ""
    if data.held_out and data.stream is not None:
        held_out = "; validation is from the first rows of the training data"
    separator = ";" if held_out else ","
    classes = f"{separator} {len(data.label_names)} classes" if data.label_names else ""
    lines = [f"{data.name}: {sizes} examples{held_out}{classes}."]
    lines += _balance(data)
    lines += _implausible_rates(config)
    lines += _warn_if_sorted(data, config)
    for name, part in sets.items():
        if cut := part.num_truncated:
            kind = {"train": "training"}.get(name, name)
            unit, first = data.task.record.unit, "the first " if name == "train" and data.stream is not None else ""
            lines.append(
                f"{cut:,} of {first}{len(part):,} {kind} {unit} ({cut / len(part):.1%}) are longer than "
                f"{part.cut_at} and will be truncated."
            )
    return lines


def _implausible_rates(config: FinetuneConfig) -> list[str]:
    """Point out learning rates that are probably typing errors, such as 5e5 for 5e-5."""
    rates = {name: getattr(config, name) for name in RATES}
    return [
        f"{name} is {rate:g}. Fine-tuning usually needs {_LOWEST_RATE:g} to {_HIGHEST_RATE:g}; is that a typing error?"
        for name, rate in rates.items()
        if rate is not None and not _LOWEST_RATE <= rate <= _HIGHEST_RATE
    ]


def _size(data: TaskData) -> str:
    if data.stream is None:
        return f"{len(data.train):,}"
    return "an unknown number of" if data.stream.num_rows is None else f"{data.stream.num_rows:,} streamed"


def _warn_if_sorted(data: TaskData, config: FinetuneConfig) -> list[str]:
    """Warn about a stream that seems to be sorted by class."""
    counts = data.task.facts(data.train, data.label_names).get("per_class", {})
    classes = [name for name, count in counts.items() if count]
    if data.stream is None or len(classes) != 1 or len(data.train) < _ENOUGH:
        return []
    return [
        f"The first {len(data.train):,} training rows are all {classes[0]!r}, so the stream seems to be sorted. "
        f"Training shuffles only {config.shuffle_buffer:,} rows at a time (--shuffle-buffer). Shuffle the data first."
    ]


def _balance(data: TaskData) -> list[str]:
    counts = data.task.facts(data.train, data.label_names).get("per_class", {})
    where = "in training"
    if data.stream is not None and data.stream.per_class is not None:
        counts = data.stream.per_class
    elif data.stream is not None:
        where = f"in the first {len(data.train):,} training rows"
    total = sum(counts.values())
    if not counts or not total:
        return []
    shares = {name: count / total for name, count in counts.items()}
    largest = sorted(shares, key=lambda name: -shares[name])
    shown = list_names([f"{name} {shares[name]:.1%}" for name in largest], _MOST_CLASSES)
    lines = [f"Classes {where}: {shown}."]
    rare = [name for name in largest if shares[name] < _RARE / max(1, len(shares) / 2)]
    if rare:
        lines.append(
            f"Rare {where}: {', '.join(rare[:5])}{', ...' if len(rare) > 5 else ''}. Check macro F1 and the scores by "
            "class, not only accuracy."
        )
    return lines
