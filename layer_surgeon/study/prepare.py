"""Prepares what all trainings of a study share, once, before the first one: data, hosts, layers, synthetic texts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from layer_surgeon._folders import expand_home
from layer_surgeon._io import parse_json, read_json, read_object, write_json
from layer_surgeon._model_types import LAYER
from layer_surgeon.assemble import AssemblyRecipe, assemble_model
from layer_surgeon.checkpoint import Checkpoint, open_checkpoint
from layer_surgeon.checkpoint.packaged import local_model
from layer_surgeon.errors import ConfigError, DataError, SourceError
from layer_surgeon.extract import LayerArtifact, extract_layer
from layer_surgeon.finetune.columns import choose_columns
from layer_surgeon.finetune.config import COLUMN_SETTINGS, FinetuneConfig
from layer_surgeon.finetune.data import declared_names, prepare_evaluation
from layer_surgeon.finetune.examples import Examples, hold_out, subsample
from layer_surgeon.finetune.labels import classes_of
from layer_surgeon.finetune.sources import RawData, Role, load_data
from layer_surgeon.finetune.tasks import finetune_task
from layer_surgeon.progress import Progress
from layer_surgeon.study.arms import Arm, DonorSpec
from layer_surgeon.study.data import INFO, SPLIT_SEED, DataSpec, PreparedData, file_hashes, spec_key, write_rows
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.layout import read_json as read_ours
from layer_surgeon.study.local_models import changed_file, remember_models
from layer_surgeon.study.plan import StudyPlan, digest_of
from layer_surgeon.study.synthesis_config import SynthesisConfig
from layer_surgeon.study.synthesize import synthesize
from layer_surgeon.tasks import get_task
from layer_surgeon.workspace import layer_name, short_name


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
        DataError: A data set can't be used.
        SourceError, CheckpointError, ArtifactError: A host or a layer can't be read.
    """
    if get_task(plan.task).one_label_per_text:
        # A data set's own columns come before those that the training settings name for all data sets.
        common = {name: plan.finetune[name] for name in COLUMN_SETTINGS if plan.finetune.get(name) is not None}
        for spec in plan.data:
            settled = replace(spec, columns={**common, **spec.columns})
            prepare_data_set(settled, folder.data(spec.name), plan.test_fraction, progress, task=plan.task)
    else:
        for spec in plan.data:
            _remember_files(spec, folder.data(spec.name), plan.test_fraction)
    for host in dict.fromkeys(arm.host for arm in plan.arms):
        local_model(host, progress)  # An archive is unpacked before the first training.
    artifacts = (arm.donor.source for arm in plan.arms if arm.donor is not None and _is_artifact(arm.donor))
    remember_models([*(arm.host for arm in plan.arms), *artifacts], folder)
    prepare_layers((arm.donor for arm in plan.arms if arm.donor is not None), folder, progress)
    prepare_synthetic(plan, folder, progress, most_per_label=most_per_label)


def prepare_data_set(spec: DataSpec, folder: Path, test_fraction: float, progress: Progress, *, task: str) -> None:
    """Write a data set with one label per text as train.jsonl, validation.jsonl, test.jsonl and data.json.

    Raises:
        ConfigError: A data file has changed since an earlier call.
        DataError: The data set can't be used.
    """
    key = spec_key(spec, test_fraction)
    if (info := _read_info(folder, key)) is not None:
        _check_files(spec, info)
        _notice_same_rows(spec.name, folder, progress)
        return
    files = file_hashes(spec)
    parts = {name: _read(spec, name, task, progress) for name in get_args(Role)}
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
    # A data set without data.json is not complete: so half of the new rows are never taken for all of them.
    (folder / INFO).unlink(missing_ok=True)
    for name in set(parts) - set(filled_parts):
        (folder / f"{name}.jsonl").unlink(missing_ok=True)
    for name, rows in filled_parts.items():
        write_rows(folder / f"{name}.jsonl", rows)
    pairs = any("text_pair" in row for rows in filled_parts.values() for row in rows)
    counts = {name: len(rows) for name, rows in filled_parts.items()}
    info = {"format": 1, "key": key, "labels": sorted(labels), "pairs": pairs, "examples": counts, "files": files}
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


def _remember_files(spec: DataSpec, folder: Path, test_fraction: float) -> None:
    """Write a data.json with only the sha256 of the local files, for a task whose trainings read these files.

    Raises:
        ConfigError: A file has changed since an earlier call.
    """
    key = spec_key(spec, test_fraction)
    if (info := _read_info(folder, key)) is not None:
        _check_files(spec, info)
    elif files := file_hashes(spec):
        write_json(folder / INFO, {"format": 1, "key": key, "files": files})


def _read_info(folder: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the content of data.json; None if it is missing, damaged, or that of another data set."""
    info = read_object(folder / INFO)
    return info if info.get("key") == key else None


def _check_files(spec: DataSpec, info: Mapping[str, Any]) -> None:
    known = info.get("files")
    if not isinstance(known, dict):  # Earlier versions did not write hashes.
        return
    for path, sha256 in file_hashes(spec).items():
        if known.get(path) != sha256:
            raise changed_file(path)


def _read(spec: DataSpec, part: Role, task: str, progress: Progress) -> list[dict[str, Any]] | None:
    """Return the rows of a part, or None if there are none.

    They are from the sources that the plan names for the part, or else from that split of the training sources.
    """
    sources: Sequence[str] = getattr(spec, part)
    if sources:
        return [row for source in sources for row in _rows(spec, source, part, task, progress)]
    if part == "train" or not spec.train:
        return None
    raws = [load_data(source, progress, task=task) for source in spec.train]
    if not all((raw.validation if part == "validation" else raw.test) is not None for raw in raws):
        return None
    return [row for source in spec.train for row in _rows(spec, source, part, task, progress)]


def _rows(spec: DataSpec, source: str, part: Role, task: str, progress: Progress) -> list[dict[str, Any]]:
    raw = load_data(source, progress, task=task)
    config = FinetuneConfig.from_settings(None, spec.columns)
    split = raw.split_name(part)
    label_names = _label_names(raw, split, config, task)
    _, examples = prepare_evaluation(
        source, label_names, config, split=split, task=finetune_task(task), progress=progress
    )
    rows = _as_rows(examples, label_names)
    if spec.labels:
        unknown_labels = sorted(set(spec.labels) - set(label_names))
        if unknown_labels:
            raise DataError(
                f"{source} has no label {unknown_labels[0]!r}. Its labels are: {', '.join(label_names)}. Change labels "
                "in the plan."
            )
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


def prepare_layers(donors: Iterable[DonorSpec], folder: StudyFolder, progress: Progress) -> None:
    """Extract the layers that are still missing, and open each checkpoint only once for all of its layers.

    Raises:
        ConfigError: The layers of two donors would have the same name, the folder has a layer of that name from
            another donor, or a donor is a layer artifact that does not hold what the plan names.
        SourceError, CheckpointError, LayerNotFoundError, ArtifactError: A layer can't be extracted.
    """
    extracted_donors = check_layers(donors, folder)
    missing = [donor for donor in extracted_donors if not (folder.layer(donor.name) / "config.json").is_file()]
    for source, revision in dict.fromkeys((donor.source, donor.revision) for donor in missing):
        same_checkpoint = [donor for donor in missing if (donor.source, donor.revision) == (source, revision)]
        checkpoint = open_checkpoint(source, revision=revision)
        for donor in same_checkpoint:
            # Written before the layer: an interrupted extraction is resumed later, and must be from the same donor.
            write_json(_origin_file(donor, folder), {"origin": donor.text})
            _make_donor(donor, checkpoint, folder.layer(donor.name), progress)


def _make_donor(donor: DonorSpec, checkpoint: Checkpoint, target: Path, progress: Progress) -> None:
    """Extract layers or a stack, or assemble the model that has only these layers."""
    layers = list(donor.layers)
    if donor.form == "model":
        recipe = AssemblyRecipe.of(checkpoint, keep=layers, dtype=donor.dtype)
        assemble_model(recipe, target, progress=progress)
        return
    extract_layer(
        checkpoint,
        layer=layers,
        output=target,
        dtype=donor.dtype,
        progress=progress,
        embeddings=donor.form == "stack",
        vocabulary=donor.vocabulary,
    )


def check_layers(donors: Iterable[DonorSpec], folder: StudyFolder) -> list[DonorSpec]:
    """Return the donors whose layers belong in the study's folder.

    Raises:
        ConfigError: As in `prepare_layers`.
        ArtifactError: A donor is a layer artifact that is damaged.
    """
    extracted_donors = []
    for donor in dict.fromkeys(donors):
        if _is_artifact(donor):
            _check_artifact(donor)
        else:
            extracted_donors.append(donor)
    by_name: dict[str, DonorSpec] = {}
    for donor in extracted_donors:
        other = by_name.setdefault(donor.name, donor)
        if other != donor:
            raise ConfigError(
                f"The layers of {other.text} and {donor.text} would both be in "
                f"{folder.layer(donor.name)}. Extract one of them with surgeon extract --output FOLDER, and give that "
                "folder as the donor."
            )
        _check_origin(donor, folder)
    return extracted_donors


def _check_artifact(donor: DonorSpec) -> None:
    """Check that a layer artifact is what an arm needs: nothing is extracted, so it is used as it is."""
    source = donor.shown_source
    if donor.form == "model":
        raise ConfigError(
            f"{source} is a layer artifact, but an arm trains the donor's model, cut to some layers. "
            "Name the model as that arm's donor: {source: MODEL, layer: '0:9'}."
        )
    artifact = LayerArtifact.open(Path(expand_home(donor.source)))
    indices = artifact.layer_indices
    embeddings = artifact.config.get("embeddings")
    if embeddings is not None and donor.form == "layers":
        raise ConfigError(
            f"{source} is a layer artifact with embeddings, for arms whose donor reads text. Use the arm stack with "
            f"donor: {{source: {source}, layer: '0:{len(indices)}'}}, or name a donor without embeddings."
        )
    if embeddings is None and donor.form == "stack":
        raise ConfigError(
            f"{source} is a layer artifact without embeddings, but an arm's donor reads text. Name the model as that "
            "arm's donor, or an artifact made by surgeon extract MODEL --layer 0:9 --embeddings."
        )
    if embeddings is not None and (reads_own := embeddings.get("vocabulary") is None) != (donor.vocabulary is None):
        whose, tokens = ("its own", "own") if reads_own else ("a host's", "host")
        raise ConfigError(
            f"{source} is a layer artifact that reads {whose} tokens, so donor_tokens of its arm must be {tokens}. Set "
            "that under graft, or name the model as that arm's donor."
        )
    settings = [f"{name} {value}" for name in ("revision", "dtype") if (value := getattr(donor, name)) is not None]
    if donor.layers not in (DonorSpec.layers, indices):
        settings.append(f"layers {', '.join(map(str, donor.layers))}")
    if settings:
        dtypes = ", ".join(sorted({tensor.dtype for tensor in artifact.tensors()}))
        raise ConfigError(
            f"{source} is a layer artifact, which is used as it is: layers {', '.join(map(str, indices))} in {dtypes}. "
            f"The plan names {' and '.join(settings)}. Leave that out, or name the model as the donor."
        )


def _origin_file(donor: DonorSpec, folder: StudyFolder) -> Path:
    return folder.path("layers", f"{donor.name}.json")


def _check_origin(donor: DonorSpec, folder: StudyFolder) -> None:
    """Check that the layer in the folder is from this donor: the plan may have changed since the extraction."""
    path = _origin_file(donor, folder)
    origin = read_ours(path).get("origin") if path.is_file() else None
    if origin not in (None, donor.text):
        raise ConfigError(
            f"{folder.layer(donor.name)} was extracted from {origin}, but the plan names {donor.text}. "
            "Choose another --output for this plan."
        )


def layer_folder(donor: DonorSpec, folder: StudyFolder) -> Path:
    """Return the folder of an arm's layers, or of the model of only these layers."""
    return Path(expand_home(donor.source)) if _is_artifact(donor) else folder.layer(donor.name)


def _is_artifact(donor: DonorSpec) -> bool:
    path = Path(expand_home(donor.source))
    if not (path / "config.json").is_file():
        return False
    try:
        config = read_json(path / "config.json")
    except (OSError, ValueError) as error:
        raise SourceError(f"{path / 'config.json'} can't be read: {error}. Download the model again.") from error
    return isinstance(config, dict) and config.get("model_type") == LAYER


def open_layer(donor: DonorSpec, folder: StudyFolder) -> LayerArtifact:
    """Open the layer of an arm.

    Raises:
        ArtifactError: The layer is missing or damaged.
    """
    return LayerArtifact.open(layer_folder(donor, folder))


def donor_name(donor: DonorSpec, folder: StudyFolder) -> str:
    """Return the name of an arm's donor for readers, with the numbers of its layers counted from 0.

    Raises:
        ArtifactError: The layer is missing or damaged.
    """
    if donor.form != "layers":
        return donor.name
    artifact = open_layer(donor, folder)
    source = artifact.config["source"]["name"] if _is_artifact(donor) else donor.shown_source
    return layer_name(source, artifact.layer_indices)


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
