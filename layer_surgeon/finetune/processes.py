"""Several processes that train one model together (torchrun, accelerate launch): who writes, and what all must know."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from accelerate import PartialState

from layer_surgeon.errors import ConfigError, LayerSurgeonError
from layer_surgeon.graft import GraftedModel

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: This one's number.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def on_main(self, function: Callable[[], _T]) -> _T:
        """What the function returns in the main process, in all of them; its errors too.

        Raises:
            LayerSurgeonError: What the function raised.
        """
        if self.count == 1:
            return function()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = function()
            except LayerSurgeonError as error:
                box[1] = error
        torch.distributed.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise box[1]
        result: _T = box[0]
        return result


def number_of_processes() -> int:
    """How many processes the launcher has started, by what it tells each of them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the only one, or the first of several."""
    return int(os.environ.get("RANK", "0")) == 0


def join_processes(device: torch.device) -> Processes:
    """Meet the other processes, if the launcher has started any."""
    if number_of_processes() == 1:
        return Processes()
    # Else all processes but the first would start with empty weights, donor and all, and wait for the first one's.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    # accelerate's own state, which the trainer takes up: gloo on the CPU, NCCL on GPUs.
    state = PartialState(cpu=device.type == "cpu")
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and state.distributed_type == "MULTI_CPU":
        raise ConfigError(
            "The launcher's configuration asks for FSDP, which accelerate has for GPUs alone: on the CPU it would run "
            "something else. Take a configuration without it (distributed_type: MULTI_CPU)."
        )
    return Processes(rank=state.process_index, count=state.num_processes)


def frozen_donor(model: Any) -> list[str]:
    """Names of all weights and buffers of the model's donor layer; none if it has none, or trains it."""
    if not isinstance(model, GraftedModel) or model.donor is None:
        return []
    if any(parameter.requires_grad for parameter in model.donor.parameters()):
        return []
    both = (*model.donor.named_parameters(), *model.donor.named_buffers())
    return [f"donor.{name}" for name, _ in both]


def leave_donor_alone(model: Any) -> None:
    """Have DistributedDataParallel not send the frozen donor layer around: every process has read the same file."""
    names = frozen_donor(model)
    if names:
        # What DistributedDataParallel's own `_set_params_and_buffers_to_ignore_for_model` sets.
        model._ddp_params_and_buffers_to_ignore = names
