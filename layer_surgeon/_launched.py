"""What a launcher of several processes (torchrun, `accelerate launch`, our own) says about this one. Without torch."""

import os


def number_of_processes() -> int:
    """The number of processes that the launcher has started; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def is_main_process() -> bool:
    """Whether this process is the only one, or the first of several."""
    return _number("RANK", 0) == 0


def _number(name: str, default: int) -> int:
    # Other programs use variables with such names, too.
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default
