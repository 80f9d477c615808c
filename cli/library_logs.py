"""Warnings that other libraries log don't appear on stderr, unless `--debug` is given."""

import logging

# torch has its own handler, which a filter of another one doesn't reach. This module of torch warns about torchao.
_TORCH_LOGGER = "torch.utils._pytree"


def hide_library_warnings() -> None:
    """Hide warnings of libraries that have configured no logging. Their errors and our own warnings still appear."""
    if logging.lastResort is not None:
        logging.lastResort.addFilter(_is_shown)
    logging.getLogger(_TORCH_LOGGER).addFilter(_is_shown)


def _is_shown(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or record.name.partition(".")[0] == "layer_surgeon"
