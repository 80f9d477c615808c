"""Keeps transformers' own progress bars and reports from the terminal while we load and save parts."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only errors are logged, and no bar is drawn, inside; afterwards all is as before.

    A host's checkpoint usually holds a head that we don't want, which transformers would report as unexpected weights;
    what matters in that report, missing weights, `load_host` checks itself.
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
