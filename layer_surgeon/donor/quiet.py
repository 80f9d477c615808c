"""Suppress transformers' progress bars and log messages while parts are loaded and saved."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Log only errors and show no progress bars inside the `with` block.

    A host's checkpoint usually has a head that we don't need, which transformers would report as unexpected weights.
    Missing weights, which do matter, are checked by `load_host`; those of a donor layer by `load_state`.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
