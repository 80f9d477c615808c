"""Prepares what all trainings of a study share, once, before the first one: data, hosts, layers, synthetic texts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from layer_surgeon._folders import expand_home
from layer_surgeon._io import parse_json, read_object, write_json
from layer_surgeon.checkpoint.packaged import local_model
from layer_surgeon.errors import ConfigError, DataError, WorkspaceError
from layer_surgeon.finetune.columns import choose_columns
from layer_surgeon.finetune.config import COLUMN_SETTINGS, FinetuneConfig
from layer_surgeon.finetune.data import declared_names, prepare_evaluation
from layer_surgeon.finetune.examples import Examples, hold_out, subsample
from layer_surgeon.finetune.labels import classes_of
from layer_surgeon.finetune.sources import RawData, Role, load_data
from layer_surgeon.finetune.tasks import finetune_task
from layer_surgeon.progress import Progress
from layer_surgeon.study.arms import Arm
from layer_surgeon.study.data import INFO, SPLIT_SEED, DataSpec, PreparedData, file_hashes, spec_key, write_rows
from layer_surgeon.study.donor_layers import is_artifact, prepare_layers
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.local_models import changed_file, remember_models
from layer_surgeon.study.plan import StudyPlan, digest_of
from layer_surgeon.study.synthesis_config import SynthesisConfig
from layer_surgeon.study.synthesize import synthesize
from layer_surgeon.tasks import get_task
from layer_surgeon.workspace import short_name


def prepare_study(
    plan: StudyPlan, folder: StudyFolder, progress: Progress, *, most_per_label: int | None = None
) -> None:
    """Prepare everything that is still missing. A second call does nothing.

    Args:
        plan: The plan.
        folder: The study's folder.
        progress: Receives progress reports.
        most_per_label: Write at most so many synthetic texts for each label; None: as many as the plan says.

    Raises:
        ConfigError: As in `prepare_layers`, or a file of the data or of a model has changed since an earlier call.
        DataError: A data set can't be used, or a test set has labels that its training part lacks.
        SourceError, CheckpointError, ArtifactError: A host or a layer can't be read.
        WorkspaceError: The folder of a data set holds files of somebody else.
    """
    if get_task(plan.task).one_label_per_text:
        # A data set's own columns come before those that the training settings name for all data sets.
        common = {name: plan.finetune[name] for name in COLUMN_SETTINGS if plan.finetune.get(name) is not None}
        for spec in plan.data:
            settled = replace(spec, columns={**common, **spec.columns})
            prepare_data_set(settled, folder.data(spec.name), plan.test_fraction, progress, task=plan.task)
        _check_labels(plan, folder)
    else:
        for spec in plan.data:
            _remember_files(spec, folder.data(spec.name), plan.test_fraction)
    for host in dict.fromkeys(arm.host for arm in plan.arms):
        local_model(host, progress)  # An archive is unpacked before the first training.
    artifacts = (arm.donor.source for arm in plan.arms if arm.donor is not None and is_artifact(arm.donor))
    remember_models([*(arm.host for arm in plan.arms), *artifacts], folder)
    prepare_layers((arm.donor for arm in plan.arms if arm.donor is not None), folder, progress)
    prepare_synthetic(plan, folder, progress, most_per_label=most_per_label)


def prepare_data_set(spec: DataSpec, folder: Path, test_fraction: float, progress: Progress, *, task: str) -> None:
    """Write a data set with one label per text as train.jsonl, validation.jsonl, test.jsonl and data.json.

    Raises:
        ConfigError: A data file has changed since an earlier call.
        DataError: The data set can't be used.
        WorkspaceError: The folder holds files of somebody else.
    """
    info, key = read_object(folder / INFO), spec_key(spec, test_fraction)
    _check_files(spec, info, key)
    if info.get("key") == key:
        _notice_same_rows(spec.name, folder, progress)
        return
    _check_is_ours(folder)
    files = _known_files(info) | file_hashes(spec)
    seen_labels: set[str] = set()
    parts = {name: _read(spec, name, task, progress, seen_labels) for name in get_args(Role)}
    if unknown_labels := sorted(set(spec.labels) - seen_labels):
        raise DataError(
            f"{spec.name} has no label {unknown_labels[0]!r}. Its labels are: {', '.join(sorted(seen_labels))}. Change "
            "labels in the plan."
        )
    labels = tuple(dict.fromkeys(row["label"] for rows in parts.values() for row in rows or ()))
    train = parts["train"]
    has_test = parts["test"] is not None
    if not has_test and train:
        parts["train"], parts["test"] = _hold_out(train, labels, test_fraction)
    if held_out := parts["test"]:
        parts["test"] = tested = _at_most(held_out, labels, spec.max_test_samples)
        if not has_test:
            used = "" if len(tested) == len(held_out) else f", and {len(tested)} of these are used"
            progress.notice(
                f"{spec.name} has no test part. {len(held_out)} of its examples are held out to test all trainings"
                f"{used}."
            )
    filled_parts = {name: rows for name, rows in parts.items() if rows}
    # Without the key the data set is not complete: so half of the new rows are never taken for all of them.
    write_json(folder / INFO, {"format": 1, "files": files})
    for name in set(parts) - set(filled_parts):
        (folder / f"{name}.jsonl").unlink(missing_ok=True)
    for name, rows in filled_parts.items():
        write_rows(folder / f"{name}.jsonl", rows)
    pairs = any("text_pair" in row for rows in filled_parts.values() for row in rows)
    counts = {name: len(rows) for name, rows in filled_parts.items()}
    part_labels = {name: sorted({row["label"] for row in rows}) for name, rows in filled_parts.items()}
    info = {"format": 1, "key": key, "labels": sorted(labels), "part_labels": part_labels, "pairs": pairs}
    info |= {"examples": counts, "files": files}
    write_json(folder / INFO, info)
    _notice_same_rows(spec.name, folder, progress)


def _notice_same_rows(name: str, folder: Path, progress: Progress) -> None:
    """Say if the test part is in the validation part, which chooses the best epochs."""
    paths = [folder / f"{part}.jsonl" for part in ("validation", "test")]
    if not all(path.is_file() for path in paths):
        return
    validation, test = (set(path.read_bytes().splitlines()) for path in paths)
    if test <= validation:
        progress.notice(
            f"All test examples of {name} are in its validation part too. The best epochs are chosen on them, so the "
            "test scores are too good."
        )


def _check_is_ours(folder: Path) -> None:
    """Refuse to replace the files of a data set that was not written by a study."""
    if not (folder / INFO).exists():
        for part in get_args(Role):
            if (folder / f"{part}.jsonl").exists():
                raise WorkspaceError(
                    f"{folder} holds {part}.jsonl, which no study has written. Choose another folder with --output."
                )


def _check_labels(plan: StudyPlan, folder: StudyFolder) -> None:
    """Refuse a test set with a label that its training part lacks, before the first training."""
    for name, tests in plan.tests.items():
        known = _part_labels(folder, name, "train")
        for test in tests:
            unknown = [label for label in _part_labels(folder, test, "test") if label not in known]
            if known and unknown:
                raise DataError(
                    f"The test part of {test} has the label {unknown[0]!r}, but models trained on {name} know only "
                    f"{', '.join(known)}. Map labels to each other with labels in the plan, or test on other data sets."
                )


def _part_labels(folder: StudyFolder, name: str, part: Role) -> list[str]:
    labels = read_object(folder.data(name) / INFO).get("part_labels")  # Earlier versions did not write them.
    return list(labels.get(part, ())) if isinstance(labels, dict) else []


def _remember_files(spec: DataSpec, folder: Path, test_fraction: float) -> None:
    """Write a data.json with only the sha256 of the local files, for a task whose trainings read these files.

    Raises:
        ConfigError: A file has changed since an earlier call.
    """
    info, key = read_object(folder / INFO), spec_key(spec, test_fraction)
    _check_files(spec, info, key)
    if info.get("key") != key and (files := file_hashes(spec)):
        write_json(folder / INFO, {"format": 1, "key": key, "files": _known_files(info) | files})


def _check_files(spec: DataSpec, info: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    """Compare the local files with those that trainings used, also with other settings of the data set."""
    known, is_same = _known_files(info), info.get("key") == key and "files" in info
    for path, sha256 in file_hashes(spec).items():
        if known.get(path, None if is_same else sha256) != sha256:
            raise changed_file(path)


def _known_files(info: Mapping[str, Any]) -> dict[str, str]:
    """Path -> sha256 of the files that a data set was made of, also with other settings."""
    known = info.get("files")  # Earlier versions did not write them.
    return known if isinstance(known, dict) else {}


def _read(
    spec: DataSpec, part: Role, task: str, progress: Progress, seen_labels: set[str]
) -> list[dict[str, Any]] | None:
    """Return the rows of a part, or None if there are none, and add its labels to those seen.

    They are from the sources that the plan names for the part, or else from that split of the training sources.
    """
    sources: Sequence[str] = getattr(spec, part)
    if sources:
        return [row for source in sources for row in _rows(spec, source, part, task, progress, seen_labels)]
    if part == "train" or not spec.train:
        return None
    raws = [load_data(source, progress, task=task) for source in spec.train]
    if not all((raw.validation if part == "validation" else raw.test) is not None for raw in raws):
        return None
    return [row for source in spec.train for row in _rows(spec, source, part, task, progress, seen_labels)]


def _rows(
    spec: DataSpec, source: str, part: Role, task: str, progress: Progress, seen_labels: set[str]
) -> list[dict[str, Any]]:
    raw = load_data(source, progress, task=task)
    config = FinetuneConfig.from_settings(None, spec.columns)
    split = raw.split_name(part)
    label_names = _label_names(raw, split, config, task)
    _, examples = prepare_evaluation(
        source, label_names, config, split=split, task=finetune_task(task), progress=progress
    )
    rows = _as_rows(examples, label_names)
    seen_labels.update(label_names)
    if spec.labels:
        rows = [row | {"label": spec.labels[row["label"]]} for row in rows if row["label"] in spec.labels]
    return rows


def _label_names(raw: RawData, split: str, config: FinetuneConfig, task: str) -> tuple[str, ...]:
    table = raw.choose(split)
    columns = choose_columns(table, config, raw.record, roles=get_task(task).columns)
    return declared_names(raw, table, columns) or classes_of(table.columns[str(columns.label)], table.location)


def _as_rows(examples: Examples, label_names: Sequence[str]) -> list[dict[str, Any]]:
    pairs = examples.pairs or (None,) * len(examples)
    return [
        {"text": text, **({} if pair is None else {"text_pair": pair}), "label": label_names[label]}
        for text, pair, label in zip(examples.texts, pairs, examples.labels, strict=True)
    ]


def _hold_out(
    rows: list[dict[str, Any]], label_names: Sequence[str], fraction: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    kept, held_out = hold_out(_numbered(rows, label_names), fraction, SPLIT_SEED)
    return [rows[int(number)] for number in kept.texts], [rows[int(number)] for number in held_out.texts]


def _at_most(rows: list[dict[str, Any]], label_names: Sequence[str], limit: int | None) -> list[dict[str, Any]]:
    taken = subsample(_numbered(rows, label_names), limit, SPLIT_SEED)
    return [rows[int(number)] for number in taken.texts]


def _numbered(rows: list[dict[str, Any]], label_names: Sequence[str]) -> Examples:
    """Return examples with the rows' labels, whose texts are the rows' numbers."""
    labels = tuple(label_names.index(row["label"]) for row in rows)
    return Examples(texts=tuple(map(str, range(len(rows)))), pairs=None, labels=labels)


def synthetic_file(arm: Arm, data: str, folder: StudyFolder) -> Path:
    """Return the file with the texts that a model wrote for an arm. Other settings or labels give another file."""
    settings = [dict(arm.synthetic or {}), PreparedData.open(folder.data(data)).labels]
    return folder.data(data) / f"synthetic-{short_name(arm.name)}-{digest_of(settings)}.jsonl"


def prepare_synthetic(
    plan: StudyPlan, folder: StudyFolder, progress: Progress, *, most_per_label: int | None = None
) -> None:
    """Have a model write the training texts of the arms with synthetic texts, at most so many for each label.

    Raises:
        ConfigError: An arm names neither a model nor a file, or its file has changed since an earlier call.
    """
    for arm in plan.arms:
        if arm.synthetic is None:
            continue
        for spec in plan.data:
            if not spec.train:
                continue
            target = synthetic_file(arm, spec.name, folder)
            labels = PreparedData.open(folder.data(spec.name)).labels
            settings = dict(arm.synthetic)
            texts_path = settings.pop("file", None)
            if texts_path is not None:
                _copy_texts(texts_path, target, labels)
                continue
            if target.is_file():
                continue
            if "model" not in settings:
                raise ConfigError(
                    f"The arm {arm.name} trains on synthetic texts, but does not say which model writes them. Add "
                    "synthetic: {model: gpt2, per_label: 1000}, or synthetic: {file: texts.jsonl}."
                )
            config = replace(SynthesisConfig.from_settings(None, settings), labels=labels)
            if most_per_label is not None:
                config = replace(config, per_label=min(config.per_label, most_per_label))
            synthesize(config, output=target, progress=progress)


def _copy_texts(source: str, target: Path, labels: Sequence[str]) -> None:
    path = Path(expand_home(source))
    if not target.is_file():
        write_rows(target, _read_texts(path, labels))
    elif path.is_file() and _read_texts(path, labels) != _read_texts(target, labels):
        raise changed_file(source)


def _read_texts(path: Path, labels: Sequence[str]) -> list[dict[str, str]]:
    """Read only texts and labels from a JSON Lines file: a plan may come from a stranger and name any file.

    Raises:
        DataError: The file does not have the format of `surgeon synthesize`, or has other labels.
    """
    rows: list[dict[str, str]] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in filter(str.strip, file):
                row = parse_json(line)
                text, label = row["text"], row["label"]
                if not isinstance(text, str) or label not in labels:
                    raise ValueError("its text is no string, or its label is unknown")
                rows.append({"text": text, "label": label})
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        # The line is not quoted: the plan may come from a stranger and name any file.
        raise DataError(
            f"{path} does not have synthetic texts for this data set: example {len(rows) + 1} is wrong. "
            f'Each line must be like {{"text": ..., "label": ...}}, with one of the labels {", ".join(labels)}.'
        ) from error
    return rows
