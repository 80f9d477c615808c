"""The paper's head, and replacing its last layer."""

import torch
from torch import Tensor, nn

from layer_surgeon.errors import DataError


def check_labels(labels: Tensor, num_labels: int) -> None:
    """Refuse class ids that the head has no output for; -100 is no label.

    Only where it costs nothing to look: on a GPU it would wait for all work that is under way, and a tensor of shapes
    alone has no numbers.

    Raises:
        DataError: There is such an id.
    """
    plain = type(labels) is Tensor and labels.device.type == "cpu" and not labels.is_floating_point()
    if not plain or torch.compiler.is_compiling():
        return
    wrong = labels[(labels != -100) & ((labels < 0) | (labels >= num_labels))]
    if len(wrong) and num_labels > 1:
        raise DataError(
            f"The labels hold the class id {int(wrong[0])}, but the model has {num_labels} labels, 0 to "
            f"{num_labels - 1}. Name all of them with model.set_labels([...]), or make the graft with more num_labels."
        )


class ClassificationHead(nn.Module):
    """Linear(h, h) -> Dropout -> GELU -> Linear(h, labels); paper, table 20 (0.592 M at h = 768, 2 labels)."""

    def __init__(self, width: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.activation = nn.GELU()
        self.out = nn.Linear(width, num_labels)

    def forward(self, vectors: Tensor) -> Tensor:
        """[..., host_hidden] -> [..., num_labels]."""
        return self.out(self.activation(self.dropout(self.dense(vectors))))  # type: ignore[no-any-return]  # torch types a module's call as Any

    def set_num_labels(self, number: int) -> None:
        """Start the last linear layer anew, where the number of labels changes."""
        old = self.out
        if number != old.out_features:
            self.out = nn.Linear(
                old.in_features, number, bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype
            )
