"""Export grafts to ONNX or `torch.export`. Each export is compared with the graft before it is kept."""

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
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from layer_surgeon._folders import expand_home
from layer_surgeon._text import first_line
from layer_surgeon._version import __version__
from layer_surgeon.donor import DonorStack
from layer_surgeon.donor.quiet import quiet_transformers
from layer_surgeon.errors import ConfigError, GraftError, WorkspaceError
from layer_surgeon.graft.donor_loading import DonorInput
from layer_surgeon.graft.model_config import SurgeonGraftConfig, read_graft_config
from layer_surgeon.graft.modeling import GraftedModel
from layer_surgeon.graft.reading import vocabulary_size
from layer_surgeon.graft.untrained import notice_if_untrained
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.tasks import TASKS, get_task
from layer_surgeon.workspace import short_name

ExportFormat = Literal["onnx", "torch"]

SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx", "torch": ".pt2"}
# Relative and absolute; float32 kernels of two runtimes differ by about 1e-7 on models of a few layers.
TOLERANCE = 1e-4
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
# Logits at padding are the lowest number of their dtype; next to it, all other differences would vanish.
_LOWEST = -1e6


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """An exported graft.

    Attributes:
        path: The file.
        files: All files. For ONNX, weights of more than 1.5 GB are in a second file that ends in .data.
        format: onnx or torch.
        task: What the model does.
        inputs: Names of the inputs, each [batch, length], int64.
        outputs: Names of the outputs.
        max_difference: The largest difference from the graft's own outputs on the compared batches.
        num_bytes: Total size of all files.
    """

    path: Path
    files: tuple[Path, ...]
    format: ExportFormat
    task: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    max_difference: float
    num_bytes: int


class _TensorsOnly(nn.Module):
    """The graft with positional tensors as inputs and a tuple of tensors as output."""

    def __init__(self, model: GraftedModel) -> None:
        super().__init__()
        self.model = model
        task = get_task(model.config.task)
        is_pooled = model.config.settings.pooling != "none"
        self.output_names = tuple(
            name for name, per_token in task.outputs.items() if per_token or is_pooled or not task.pools
        )
        has_segments = getattr(model.config.get_text_config(), "type_vocab_size", 0) > 1
        own_tokens = ("donor_input_ids", "donor_attention_mask")
        self.input_names = (
            "input_ids",
            "attention_mask",
            *(["token_type_ids"] if has_segments else []),
            *(own_tokens if model.config.settings.donor_tokens == "own" else ()),
        )

    def forward(self, *inputs: Tensor) -> Any:
        out = self.model(**dict(zip(self.input_names, inputs, strict=True)))
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
    """Export a graft as a single program for other runtimes, for batches of any size and length.

    The exported program is run on batches of several shapes, with padding on either side, and compared with the graft.
    It is only kept if the outputs agree within `TOLERANCE`.

    Args:
        graft: The folder of a graft, or its repo id.
        output: The file; default: named after the graft, in the current folder.
        format: onnx: for ONNX Runtime and other ONNX runtimes; always in float32, also with another `donor_dtype`;
            checked with ONNX Runtime. torch: a `torch.export` program
            (`torch.export.load(file).module()(input_ids, mask)`).
        donor: The donor layer, if the graft was saved without it: a layer artifact, as folder or repo id.
        revision: Branch, tag or commit of the graft's repo.
        token: Hub token.
        force: Replace an existing file, and the weights of an earlier export next to it.
        progress: Receives progress reports.

    Raises:
        ConfigError: The format is unknown, or packages that it needs are missing.
        GraftError: The graft's task generates text, the exporter can't convert the host or the donor layer, or the
            exported program computes something else.
        WorkspaceError: The file exists, there is an unrelated weights file next to it, or it can't be written.
        SourceError: The graft can't be read.
    """
    progress = progress or NullProgress()
    _check_format(format)
    name = os.fspath(graft)
    target = Path(expand_home(output)) if output is not None else Path(short_name(name) + SUFFIXES[format])
    old_weights = _check_target(target, format, force=force)
    hub_settings: dict[str, Any] = {"revision": revision, "token": token}
    config = read_graft_config(name, {key: value for key, value in hub_settings.items() if value is not None})
    if get_task(config.task).generates:
        raise GraftError(
            f"The task of {name} is {config.task}, which generates text step by step and can't be exported as a single "
            f"program. Tasks that can be exported: {', '.join(name for name, task in TASKS.items() if task.outputs)}."
        )
    progress.begin(f"Exporting to {format}", 3, "steps")
    if format == "onnx":
        config.graft = {**config.graft, "donor_dtype": "float32"}
    with quiet_transformers():
        model = GraftedModel.from_pretrained(name, config=config, donor=donor, dtype=torch.float32, **hub_settings)
    notice_if_untrained(model, name, progress)
    exported = _TensorsOnly(model).eval()
    batches = _batches(exported)
    with torch.no_grad():
        expected = [exported(*batch) for batch in batches]
    progress.advance(1)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        actual = _write(exported, batches, temporary / target.name, format, name)
        progress.advance(1)
        difference = _compare(exported, batches, expected, actual, name)
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
    missing = [package for package in _ONNX_PACKAGES if importlib.util.find_spec(package) is None]
    if format == "onnx" and missing:
        raise ConfigError(
            f"Missing packages for an export to ONNX: {', '.join(missing)}. Install them with: pip install "
            f"{' '.join(missing)}"
        )


def _batches(exported: _TensorsOnly) -> list[tuple[Tensor, ...]]:
    """Make batches of several shapes: the first is used for tracing, all are compared."""
    config = exported.model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or 64
    generator = torch.Generator().manual_seed(0)
    num_ids = config.vocab_size
    settings, donor = exported.model.config.settings, exported.model.donor
    if donor is not None and settings.reads_text and settings.donor_tokens == "host":
        # A host may have more rows than its tokenizer has tokens, and the donor only knows those.
        num_ids = min(num_ids, vocabulary_size(cast(DonorStack, donor)))
    batches = []
    for rows, length, side in ((2, 12, "right"), (1, 1, "right"), (3, 25, "right"), (3, 7, "left")):
        # In some hosts (RoBERTa), positions start after the id of the padding token.
        length = max(1, min(length, longest // 2))
        ids = torch.randint(0, num_ids, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        for row in range(1, rows):
            padding = min(2 * row, length - 1)
            mask[row, slice(length - padding, None) if side == "right" else slice(0, padding)] = 0
        # Two segments, each half of the text.
        segments = (torch.arange(length) >= length // 2).long().expand_as(ids).contiguous()
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
        if "donor_input_ids" in exported.input_names:
            donor_ids = torch.randint(
                0, vocabulary_size(cast(DonorStack, exported.model.donor)), (rows, length + 2), generator=generator
            )
            donor_mask = torch.nn.functional.pad(mask, (0, 2) if side == "left" else (2, 0), value=1)
            inputs |= {"donor_input_ids": donor_ids, "donor_attention_mask": donor_mask}
        batches.append(tuple(inputs[name] for name in exported.input_names))
    return batches


def _write(
    exported: _TensorsOnly, batches: list[tuple[Tensor, ...]], path: Path, format: ExportFormat, name: str
) -> list[tuple[Tensor, ...]]:
    """Write the program, and return its outputs for the batches."""
    # For *args, torch wants their shapes as one.
    dynamic = (tuple({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in exported.input_names),)
    if format == "onnx":
        # Some hosts (T5) depend on the memory layout of torch's fused attention, which ONNX doesn't have.
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


def _save_onnx(program: torch.export.ExportedProgram, exported: _TensorsOnly, path: Path) -> None:
    onnx_program = torch.onnx.export(
        program,
        input_names=list(exported.input_names),
        output_names=list(exported.output_names),
        dynamic_shapes=tuple(
            {0: "batch", 1: "donor_length" if name.startswith("donor_") else "length"} for name in exported.input_names
        ),
        verbose=False,
    )
    assert onnx_program is not None  # Only the older exporter returns None.
    config: SurgeonGraftConfig = exported.model.config
    donor = config.donor or {}
    onnx_program.model.metadata_props.update(
        {
            "task": config.task,
            "labels": json.dumps(list(config.settings.labels)),
            "host": str((config.host or {}).get("name")),
            "donor": json.dumps({key: donor.get(key) for key in ("name", "commit", "layer_indices", "sha256")}),
            "made_with": f"layer_surgeon {__version__}",
        }
    )
    # If the model is too large for a protocol buffers file (2 GB), save() still puts the weights into a second file.
    onnx_program.save(path, external_data=False)


def _run_onnx(path: Path, exported: _TensorsOnly, batches: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    import onnxruntime  # Imported here, because it belongs to the optional extra [export].

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = []
    for batch in batches:
        inputs = {name: value.numpy() for name, value in zip(exported.input_names, batch, strict=True)}
        outputs.append(tuple(map(torch.from_numpy, session.run(list(exported.output_names), inputs))))
    return outputs


def _compare(
    exported: _TensorsOnly,
    batches: list[tuple[Tensor, ...]],
    expected: list[tuple[Tensor, ...]],
    actual: list[tuple[Tensor, ...]],
    name: str,
) -> float:
    """Return the largest difference between the graft's outputs and those of the exported program.

    Raises:
        GraftError: A difference is above the tolerance.
    """
    per_token = get_task(exported.model.config.task).outputs
    largest, worst_ratio = 0.0, 0.0
    for batch, graft_outputs, program_outputs in zip(batches, expected, actual, strict=True):
        for output_name, wanted, result in zip(exported.output_names, graft_outputs, program_outputs, strict=True):
            if per_token[output_name]:
                wanted, result = (value[batch[1].bool()] for value in (wanted, result))
            wanted, result = (value.double().clamp(min=_LOWEST) for value in (wanted, result))
            difference = (result - wanted).abs()
            largest = max(largest, float(difference.max()))
            # NaN differences count as infinite; Python's `max` would ignore them.
            ratio = (difference / (TOLERANCE * (1 + wanted.abs()))).nan_to_num(torch.inf)
            worst_ratio = max(worst_ratio, float(ratio.max()))
    if worst_ratio > 1:
        raise GraftError(
            f"The program exported from {name} computes something else than the graft: the largest difference is "
            f"{largest:.2g}; {TOLERANCE:g} is allowed. Nothing was kept. Update torch, or choose another format."
        )
    return largest


def _check_target(target: Path, format: ExportFormat, *, force: bool) -> Path | None:
    """Refuse to replace existing files unless `force` is set, and never replace weights that aren't from an export.

    Returns:
        The weights file of the program to be replaced; None if it has none.
    """
    if target.is_dir():
        raise WorkspaceError(f"{target} is a folder. Name a file with --output.")
    weights = target.with_name(f"{target.name}.data")
    for path in (target, weights) if format == "onnx" else (target,):
        if os.path.lexists(path) and not force:
            raise WorkspaceError(f"{path} already exists. Replace it with --force, or name another file with --output.")
    if format != "onnx" or not os.path.lexists(weights):
        return None
    if weights.is_dir() or not _is_ours(target, weights.name):
        raise WorkspaceError(
            f"{weights} already exists and doesn't hold the weights of an export of surgeon in {target}. Move it "
            "elsewhere, or name another file with --output."
        )
    return weights


def _is_ours(program: Path, weights: str) -> bool:
    """Whether an ONNX file is an export of ours with its weights in the named file."""
    import onnx  # Imported here, because it belongs to the optional extra [export].
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(program, load_external_data=False)
    except (OSError, ValueError, DecodeError):
        return False
    made_with = {prop.key: prop.value for prop in model.metadata_props}.get("made_with", "")
    weight_files = {
        prop.value for tensor in model.graph.initializer for prop in tensor.external_data if prop.key == "location"
    }
    return made_with.startswith("layer_surgeon ") and weights in weight_files


def _move(temporary: Path, target: Path, old_weights: Path | None) -> tuple[Path, ...]:
    """Move the files to their target, the program last, because it needs its weights."""
    files = sorted(temporary.iterdir(), key=lambda file: file.name == target.name)
    moved = [file.replace(target.with_name(file.name)) for file in files]
    if old_weights is not None and old_weights not in moved:
        old_weights.unlink()
    return tuple(reversed(moved))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress the exporters' log messages and warnings. Errors are still raised."""
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
    """Return the first line of an error's root cause; exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
