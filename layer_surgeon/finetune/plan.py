"""`plan_finetuning`: check a run and estimate what it needs, without training."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layer_surgeon._folders import expand_home
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.folder import check_free
from layer_surgeon.finetune.models import ModelLike, quiet
from layer_surgeon.finetune.parts import as_it_was, part_of, plain_model
from layer_surgeon.finetune.prepare import Preparation, prepare_run
from layer_surgeon.finetune.sampling import count_steps, examples_per_step
from layer_surgeon.finetune.sources import DataLike
from layer_surgeon.graft.donor_loading import DonorInput
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.workspace import Workspace

# Bytes that a transformer layer keeps for the backward pass, per token and unit of hidden size, in 16-bit precision.
# Without attention scores, which the usual kernels don't store. (Korthikanti et al. 2022, "Reducing Activation
# Recomputation", equation 1: 34.)
_KEPT_PER_WIDTH = 34
_HALF = 2
# Adam's two moments.
_MOMENTS = 2


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The plan of a run.

    Attributes:
        task: The task.
        model: Name of the model.
        examples: Number of examples by split. For a stream: its number of rows or, if unknown, the number of examples
            in all steps.
        steps_per_epoch: Optimizer steps per epoch; for a stream, steps between two validations.
        steps: Total number of optimizer steps.
        parameters: Total and trained parameters of each part (host, projections, donor, head).
        memory: Estimated bytes at the largest batch: weights, gradients, optimizer, activations, total. The memory
            that libraries and the device need for themselves is not included.
        device: The device to train on.
        output: The folder to write.
        config: The settings, with all defaults resolved.
    """

    task: str
    model: str
    examples: dict[str, int]
    steps_per_epoch: int
    steps: int
    parameters: dict[str, dict[str, int]]
    memory: dict[str, int]
    device: str
    output: Path
    config: FinetuneConfig

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return asdict(self) | {"output": str(self.output)}


def plan_finetuning(
    model_or_path: ModelLike,
    train: DataLike,
    validation: DataLike | None = None,
    *,
    config: FinetuneConfig | None = None,
    output: str | os.PathLike[str] | None = None,
    test: DataLike | None = None,
    progress: Progress | None = None,
    workspace: Workspace | None = None,
    tokenizer: Any = None,
    donor: DonorInput = None,
    num_processes: int = 1,
    **settings: Any,
) -> RunPlan:
    """Run all checks that `finetune_model` runs before its first step, without training or writing anything.

    The arguments are those of `finetune_model`. In addition, `num_processes` is the number of processes to train with;
    the estimated memory is for each process.

    Raises:
        ConfigError, DataError, GraftError, SourceNotFoundError, WorkspaceError: As `finetune_model`.
    """
    config, progress = FinetuneConfig.from_settings(config, settings), progress or NullProgress()
    sources = {"graft": model_or_path, "dataset": train, "validation": validation, "test": test, "tokenizer": tokenizer}
    sources["donor"] = donor
    if output is not None:
        check_free(Path(expand_home(output)))
    with quiet():
        run = prepare_run(sources, config, progress)
    try:
        return _plan(run, output, workspace or Workspace(), num_processes)
    finally:
        as_it_was(run.context.model, config, run.before, merge=False)


def _plan(run: Preparation, output: str | os.PathLike[str] | None, workspace: Workspace, num_processes: int) -> RunPlan:
    train_set, resolved = run.training_set(num_processes)
    per_epoch, steps = count_steps(resolved, len(train_set), num_processes)
    examples = {name: len(part) for name, part in run.sets.items()}
    if run.data.stream is not None:
        examples["train"] = run.data.stream.num_rows or steps * examples_per_step(resolved, num_processes)
    return RunPlan(
        task=run.data.task.name,
        model=run.model_name,
        examples=examples,
        steps_per_epoch=per_epoch,
        steps=steps,
        parameters=_parameters(run.context.model),
        memory=_memory(run),
        device=str(run.device),
        output=Path(expand_home(output)) if output is not None else run.default_folder(workspace),
        config=resolved,
    )


def _parameters(model: Any) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        part = counts.setdefault(part_of(name, model), {"total": 0, "trained": 0})
        part["total"] += parameter.numel()
        part["trained"] += parameter.numel() * parameter.requires_grad
    return counts


def _memory(run: Preparation) -> dict[str, int]:
    parameters = list(run.context.model.parameters())
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    memory = {
        "weights": sum(p.numel() * p.element_size() for p in parameters),
        "gradients": trained,
        "optimizer": _MOMENTS * trained,
        "activations": _activations(run),
    }
    return memory | {"total": sum(memory.values())}


def _activations(run: Preparation) -> int:
    """Estimate the activations of the largest batch: of all layers; with checkpointing, their inputs and one layer."""
    config, model = run.config, plain_model(run.context.model)
    outer = getattr(model, "host", model).config
    host = outer.get_text_config()
    longest = max(run.sets["train"].lengths, default=0)
    tokens = longest * min(config.batch_size, len(run.sets["train"]))
    bytes_each = _HALF if config.precision != "fp32" else 2 * _HALF
    decoder = next((getattr(host, name) for name in _DECODER_LAYERS if getattr(host, name, None)), 0)
    layers, width = host.num_hidden_layers + (decoder if outer.is_encoder_decoder else 0), host.hidden_size
    if config.gradient_checkpointing:
        kept = tokens * width * bytes_each * layers + tokens * width * _KEPT_PER_WIDTH * bytes_each // _HALF
    else:
        kept = layers * tokens * width * _KEPT_PER_WIDTH * bytes_each // _HALF
    donor = getattr(model, "donor", None)
    if donor is not None:
        # With pooling, the donor layer sees one vector per text.
        is_pooled = getattr(model.config.settings, "pooling", None) not in (None, "none")
        donor_tokens = config.batch_size if is_pooled else tokens
        kept += donor_tokens * donor.hidden_size * _KEPT_PER_WIDTH * bytes_each // _HALF
    if run.data.task.record.generates:
        # Logits in float32, and their gradient.
        kept += 2 * tokens * host.vocab_size * 4
    return int(kept)


_DECODER_LAYERS = ("num_decoder_layers", "decoder_layers")
