"""The paper's classification head, and a check of its labels."""

import torch
from torch import Tensor, nn

from layer_surgeon.errors import DataError


def check_labels(labels: Tensor, num_labels: int) -> None:
    """Refuse class ids without an output in the head; -100 is ignored.

    Only labels on the CPU are checked. On a GPU, the check would have to wait for all pending work, and fake tensors
    have no values.

    Raises:
        DataError: A class id is out of range.
    """
    is_readable = type(labels) is Tensor and labels.device.type == "cpu" and not labels.is_floating_point()
    if not is_readable or torch.compiler.is_compiling():
        return
    invalid = labels[(labels != -100) & ((labels < 0) | (labels >= num_labels))]
    if len(invalid) and num_labels > 1:
        raise DataError(
            f"The labels contain the class id {int(invalid[0])}, but the model has {num_labels} labels, 0 to "
            f"{num_labels - 1}. Name all labels with model.set_labels([...]), or make the graft with more num_labels."
        )


class ClassificationHead(nn.Module):
    """Linear(h, h) -> Dropout -> GELU -> Linear(h, labels); paper, table 20 (0.592 M at h = 768, 2 labels).

    Args:
        width: Width of its hidden layer, and of its input by default.
        num_labels: Number of outputs.
        dropout: Probability.
        in_width: Width of its input, if that is another one.
    """

    def __init__(self, width: int, num_labels: int, dropout: float, in_width: int | None = None) -> None:
        super().__init__()
        self.dense = nn.Linear(in_width or width, width)
        self.dropout = nn.Dropout(dropout)
        self.activation = nn.GELU()
        self.out = nn.Linear(width, num_labels)

    def forward(self, vectors: Tensor) -> Tensor:
        """Compute logits: [..., in_width] -> [..., num_labels]."""
        return self.out(self.activation(self.dropout(self.dense(vectors))))  # type: ignore[no-any-return]  # torch types a module's call as Any

    def set_num_labels(self, number: int) -> None:
        """Replace the last linear layer with a new one, if the number of labels changes."""
        old = self.out
        if number != old.out_features:
            self.out = nn.Linear(
                old.in_features, number, bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype
            )
