"""The paper's head, and replacing its last layer."""

from torch import Tensor, nn


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
        return self.out(self.activation(self.dropout(self.dense(vectors))))  # type: ignore[no-any-return]

    def set_num_labels(self, number: int) -> None:
        """Start the last linear layer anew, where the number of labels changes."""
        old = self.out
        if number != old.out_features:
            self.out = nn.Linear(
                old.in_features, number, bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype
            )
