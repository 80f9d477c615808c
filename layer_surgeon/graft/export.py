"""Grafts for other runtimes: ONNX, and programs of `torch.export`; each compared with the graft before it is kept."""

import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from layer_surgeon._version import __version__
from layer_surgeon.errors import ConfigError, GraftError, WorkspaceError
from layer_surgeon.graft.auto import GraftedModel
from layer_surgeon.graft.configuration import SurgeonGraftConfig, read_graft_config
from layer_surgeon.graft.donors import DonorInput
from layer_surgeon.graft.quiet import quiet_transformers
from layer_surgeon.graft.tasks import TASKS
from layer_surgeon.graft.translate import first_line
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.workspace import short_name

ExportFormat = Literal["onnx", "torch"]

SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx", "torch": ".pt2"}
# Relative and absolute; float32 kernels of two runtimes differ by some 1e-7 on models of a few layers.
TOLERANCE = 1e-4
_NEEDED = ("onnx", "onnxruntime", "onnxscript")
# What a task gives, and whether it gives it for each token, where it means nothing at padding.
_OUTPUTS: dict[str, dict[str, bool]] = {
    "text-classification": {"logits": False},
    "token-classification": {"logits": True},
    "question-answering": {"start_logits": True, "end_logits": True},
    "feature-extraction": {"last_hidden_state": True, "pooler_output": False},
}
# A logit at padding is the lowest number of its dtype, beside which all other differences vanish.
_LOWEST = -1e6


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """An exported graft.

    Attributes:
        path: The file.
        files: All files: weights of more than 1.5 GB lie beside an ONNX file, in one that ends in .data.
        format: onnx or torch.
        task: What the model does.
        inputs: Names of the inputs, each [batch, length], int64.
        outputs: Names of the outputs.
        max_difference: The largest difference from the graft's own outputs on the batches that were compared.
        num_bytes: Of all files.
    """

    path: Path
    files: tuple[Path, ...]
    format: ExportFormat
    task: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    max_difference: float
    num_bytes: int


class _Exported(nn.Module):
    """The graft with tensors alone going in, by position, and coming out."""

    def __init__(self, model: GraftedModel) -> None:
        super().__init__()
        self.model = model
        names = _OUTPUTS[model.config.task]
        self.output_names = tuple(
            name for name in names if name != "pooler_output" or model.config.settings.pooling != "none"
        )
        segments = getattr(model.config.get_text_config(), "type_vocab_size", 0) > 1
        self.input_names = ("input_ids", "attention_mask", *(["token_type_ids"] if segments else []))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, **segments)
        return tuple(out[name] for name in self.output_names)


def export_model(
    graft: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    format: ExportFormat = "onnx",
    donor: DonorInput = None,
    revision: str | None = None,
    token: str | bool | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Write a graft as one program for other runtimes, for batches of any size and length.

    What was written is run, on batches of several shapes with padding on either side, and compared with the graft; it
    only takes its place if the outputs agree within `TOLERANCE`.

    Args:
        graft: The folder of a graft, or its repo id.
        output: The file; default: named after the graft, in the current folder.
        format: onnx: for ONNX Runtime and the like, in float32 whatever the graft's `donor_dtype`; compared with ONNX
            Runtime. torch: a program of `torch.export` (`torch.export.load(file).module()(input_ids, mask)`).
        donor: The donor layer of a graft that was saved without it: a layer artifact, as folder or repo id.
        revision: Branch, tag or commit of the graft's repo.
        token: Hub token.
        force: Replace the file, and the weights next to it that an export wrote.
        progress: Is told what is being done.

    Raises:
        ConfigError: There is no such format, or the packages that it needs are missing.
        GraftError: The graft's task is to write text, the exporter can't convert the host or the donor layer, or what
            it wrote computes something else.
        WorkspaceError: The file exists, or weights next to it that are not its own, or it can't be written.
        SourceError: The graft can't be read.
    """
    progress = progress or NullProgress()
    _check_format(format)
    name = os.fspath(graft)
    target = Path(output) if output is not None else Path(short_name(name) + SUFFIXES[format])
    old_weights = _check_target(target, format, force=force)
    place: dict[str, Any] = {"revision": revision, "token": token}
    config = read_graft_config(name, {key: value for key, value in place.items() if value is not None})
    if TASKS[config.task].generates:
        raise GraftError(
            f"The task of {name} is {config.task}: it writes text step by step, which is no single program to export. "
            f"Tasks that can be exported: {', '.join(_OUTPUTS)}."
        )
    progress.begin(f"Exporting to {format}", 3, "steps")
    if format == "onnx":
        config.graft = {**config.graft, "donor_dtype": "float32"}
    with quiet_transformers():
        model = GraftedModel.from_pretrained(name, config=config, donor=donor, dtype=torch.float32, **place)
    exported = _Exported(model).eval()
    batches = _batches(exported)
    with torch.no_grad():
        expected = [exported(*batch) for batch in batches]
    progress.advance(1)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        found = _write(exported, batches, temporary / target.name, format, name)
        progress.advance(1)
        difference = _compare(exported, batches, expected, found, name)
        files = _move(temporary, target, old_weights)
    except OSError as error:
        raise WorkspaceError(
            f"{target} can't be written: {error.strerror or error}. Make room, or choose another file with --output."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    progress.advance(1)
    progress.end()
    return ExportResult(
        path=target,
        files=files,
        format=format,
        task=config.task,
        inputs=exported.input_names,
        outputs=exported.output_names,
        max_difference=difference,
        num_bytes=sum(file.stat().st_size for file in files),
    )


def _check_format(format: str) -> None:
    if format not in get_args(ExportFormat):
        raise ConfigError(f"format is {format!r}; it must be one of {', '.join(get_args(ExportFormat))}.")
    missing = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
    if format == "onnx" and missing:
        raise ConfigError(
            f"To export to ONNX and to check the result, {' and '.join(missing)} must be installed. "
            "Install what is missing with: pip install 'layer-surgeon[export]'"
        )


def _batches(exported: _Exported) -> list[tuple[Tensor, ...]]:
    """Batches of several shapes: the first one is traced, all are compared."""
    config = exported.model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or 64
    generator = torch.Generator().manual_seed(0)
    batches = []
    for rows, length, side in ((2, 12, "right"), (1, 1, "right"), (3, 25, "right"), (3, 7, "left")):
        # Positions of some hosts (RoBERTa) begin behind the padding token's id.
        length = max(1, min(length, longest // 2))
        ids = torch.randint(0, config.vocab_size, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        for row in range(1, rows):
            padding = min(2 * row, length - 1)
            mask[row, slice(length - padding, None) if side == "right" else slice(0, padding)] = 0
        # Two segments: the second half of each text is the second.
        segments = (torch.arange(length) >= length // 2).long().expand_as(ids).contiguous()
        batches.append((ids, mask, segments)[: len(exported.input_names)])
    return batches


def _write(
    exported: _Exported, batches: list[tuple[Tensor, ...]], path: Path, format: ExportFormat, name: str
) -> list[tuple[Tensor, ...]]:
    """Write the program, and run it on the batches."""
    dynamic = tuple({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in exported.input_names)
    if format == "onnx":
        # Some hosts (T5) lean on the memory layout of torch's fused attention, which ONNX has not.
        exported.model.host.set_attn_implementation("eager")
    try:
        with _quiet_exporter(), torch.no_grad():
            program = torch.export.export(exported, batches[0], dynamic_shapes=dynamic, strict=False)
            if format == "onnx":
                _save_onnx(program, exported, path)
            else:
                torch.export.save(program, path)
    except OSError:
        raise
    except Exception as error:
        host = exported.model.config.host_config.model_type
        raise GraftError(
            f"The exporter of torch {torch.__version__} can't convert {name} (host {host}) to {format}: "
            f"{_root(error)} Update torch, or choose another format, host or donor."
        ) from error
    if format == "onnx":
        return _run_onnx(path, exported, batches)
    with _quiet_exporter(), torch.no_grad():
        loaded = torch.export.load(path).module()
        return [loaded(*batch) for batch in batches]


def _save_onnx(program: torch.export.ExportedProgram, exported: _Exported, path: Path) -> None:
    written = torch.onnx.export(
        program,
        input_names=list(exported.input_names),
        output_names=list(exported.output_names),
        dynamic_shapes=tuple({0: "batch", 1: "length"} for _ in exported.input_names),
        verbose=False,
    )
    assert written is not None  # only the older exporter gives nothing
    config: SurgeonGraftConfig = exported.model.config
    donor = config.donor or {}
    written.model.metadata_props.update(
        {
            "task": config.task,
            "labels": json.dumps(list(config.settings.labels)),
            "host": str((config.host or {}).get("name")),
            "donor": json.dumps({key: donor.get(key) for key in ("name", "commit", "layer_indices", "sha256")}),
            "made_with": f"layer_surgeon {__version__}",
        }
    )
    # What is too large for one file of protocol buffers (2 GB) it puts beside it by itself.
    written.save(path, external_data=False)


def _run_onnx(path: Path, exported: _Exported, batches: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    import onnxruntime  # of an extra: not everybody exports

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = []
    for batch in batches:
        inputs = {name: value.numpy() for name, value in zip(exported.input_names, batch, strict=True)}
        found.append(tuple(map(torch.from_numpy, session.run(list(exported.output_names), inputs))))
    return found


def _compare(
    exported: _Exported,
    batches: list[tuple[Tensor, ...]],
    expected: list[tuple[Tensor, ...]],
    found: list[tuple[Tensor, ...]],
    name: str,
) -> float:
    """The largest difference.

    Raises:
        GraftError: It is too large.
    """
    per_token = _OUTPUTS[exported.model.config.task]
    largest, worst = 0.0, 0.0
    for batch, ours, theirs in zip(batches, expected, found, strict=True):
        for output, right, result in zip(exported.output_names, ours, theirs, strict=True):
            if per_token[output]:
                right, result = (value[batch[1].bool()] for value in (right, result))
            right, result = (value.double().clamp(min=_LOWEST) for value in (right, result))
            difference = (result - right).abs()
            largest = max(largest, float(difference.max()))
            # Of a difference that is no number, `max` makes none either.
            worst = max(worst, float((difference / (TOLERANCE * (1 + right.abs()))).nan_to_num(torch.inf).max()))
    if worst > 1:
        raise GraftError(
            f"What was exported from {name} computes something else than the graft: the largest difference is "
            f"{largest:.2g}, where {TOLERANCE:g} is allowed. Nothing was kept. Update torch, or choose another format."
        )
    return largest


def _check_target(target: Path, format: ExportFormat, *, force: bool) -> Path | None:
    """Refuse to replace what is there, unless that is asked for; and the weights next to an ONNX file, unless ours.

    Returns:
        The file of weights that belongs to the program that is replaced; None where there is none.
    """
    if target.is_dir():
        raise WorkspaceError(f"{target} exists already. Name a file with --output.")
    weights = target.with_name(f"{target.name}.data")
    for path in (target, weights) if format == "onnx" else (target,):
        if os.path.lexists(path) and not force:
            raise WorkspaceError(f"{path} exists already. Replace it with --force, or name another one.")
    if format != "onnx" or not os.path.lexists(weights):
        return None
    if weights.is_dir() or not _is_ours(target, weights.name):
        raise WorkspaceError(
            f"{weights} exists already, and {target} is not an export of surgeon whose weights it holds. Move it to "
            "another place, or name another file with --output."
        )
    return weights


def _is_ours(program: Path, weights: str) -> bool:
    """Whether an ONNX file is one of ours, with weights in the file of that name."""
    import onnx  # see _run_onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(program, load_external_data=False)
    except (OSError, ValueError, DecodeError):
        return False
    made_with = {entry.key: entry.value for entry in model.metadata_props}.get("made_with", "")
    places = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    return made_with.startswith("layer_surgeon ") and weights in places


def _move(temporary: Path, target: Path, old_weights: Path | None) -> tuple[Path, ...]:
    """Put the files in their place; the program last, which is of no use without its weights."""
    files = sorted(temporary.iterdir(), key=lambda file: file.name == target.name)
    moved = [file.replace(target.with_name(file.name)) for file in files]
    if old_weights is not None and old_weights not in moved:
        old_weights.unlink()
    return tuple(reversed(moved))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporters' reports on themselves stay away from the terminal; errors are raised anyway."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _root(error: BaseException) -> str:
    """The first line of what an error began with; exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
