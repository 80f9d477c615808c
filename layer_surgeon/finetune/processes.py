"""Several processes that train one model together, started by torchrun or accelerate launch."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from accelerate import PartialState

from layer_surgeon._launched import number_of_processes
from layer_surgeon.errors import ConfigError, LayerSurgeonError
from layer_surgeon.graft import GraftedModel

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: Number of this process, from 0.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.count > 1:
            torch.distributed.barrier()

    def on_main(self, function: Callable[[], _T]) -> _T:
        """Call a function in the main process; return its result, or raise its error, in all processes.

        Raises:
            LayerSurgeonError: The function raised it.
        """
        if self.count == 1:
            return function()
        outcome: list[Any] = [None, None]  # result, error
        if self.is_main:
            try:
                outcome[0] = function()
            except LayerSurgeonError as error:
                outcome[1] = error
        torch.distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        result: _T = outcome[0]
        return result


def join_processes(device: torch.device) -> Processes:
    """Connect to the other processes, if the launcher has started any.

    Raises:
        ConfigError: The launcher's configuration asks for FSDP on the CPU.
    """
    if number_of_processes() == 1:
        return Processes()
    # Otherwise only the first process would load weights, and the others would wait for it, even for the frozen donor.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    # This is the state that the trainer uses as well: gloo on the CPU, NCCL on GPUs.
    state = PartialState(cpu=device.type == "cpu")
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and state.distributed_type == "MULTI_CPU":
        raise ConfigError(
            "The launcher's configuration asks for FSDP, which accelerate supports only on GPUs; on the CPU it would "
            "run DDP instead. Use a configuration without FSDP (distributed_type: MULTI_CPU)."
        )
    return Processes(rank=state.process_index, count=state.num_processes)


def frozen_donor(model: Any) -> list[str]:
    """The names of all parameters and buffers of a frozen donor layer; empty if the donor is trained, or missing."""
    if not isinstance(model, GraftedModel) or model.donor is None:
        return []
    if any(parameter.requires_grad for parameter in model.donor.parameters()):
        return []
    tensors = (*model.donor.named_parameters(), *model.donor.named_buffers())
    return [f"donor.{name}" for name, _ in tensors]


def leave_donor_alone(model: Any) -> None:
    """Keep DistributedDataParallel from broadcasting the frozen donor layer, which every process has loaded itself."""
    names = frozen_donor(model)
    if names:
        # The same attribute that DistributedDataParallel's `_set_params_and_buffers_to_ignore_for_model` sets.
        model._ddp_params_and_buffers_to_ignore = names
