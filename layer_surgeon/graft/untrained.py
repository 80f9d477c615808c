"""Tell the user that a graft is not trained, where its results are asked for."""

from layer_surgeon.graft.modeling import GraftedModel
from layer_surgeon.progress import Progress


def notice_if_untrained(model: GraftedModel, path: str | None, progress: Progress) -> None:
    """Send a notice if a new graft's results mean nothing yet, because they come from random weights.

    Args:
        model: The graft.
        path: Its folder or repo id; None if it is only in memory.
        progress: Receives the notice.
    """
    equals_host = model.head is None and model.gate is not None  # The gate starts at zero.
    if not model.config.untrained or equals_host:
        return
    part = "projections have" if model.head is None else "head has"
    progress.notice(
        f"{path or 'The model'} is an untrained graft: its {part} random weights, so its results mean nothing. Train "
        f"it first: surgeon finetune {path or 'GRAFT'}"
    )
