"""How well a linear map predicts a layer's output from its input, from sums that are added up batch by batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the variance of each (standardised) input. It only matters if there are few tokens for the width of the states.
RIDGE_PENALTY = 1e-3
# Outputs that hardly vary over the tokens have no meaningful R².
_LEAST_VARIANCE = 1e-12


class Moments:
    """Sums over tokens of x, y, x x', x y' and y², in float64: all that a linear regression needs.

    Args:
        width: Width of the states x and y.
        device: Where the sums are kept.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = 0
        self.sum_x, self.sum_y, self.squares_y = (
            torch.zeros(width, dtype=torch.float64, device=device) for _ in range(3)
        )
        self.products_xx, self.products_xy = (
            torch.zeros(width, width, dtype=torch.float64, device=device) for _ in range(2)
        )

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add tokens: the states before, [tokens, width], and after, [tokens, width], in float64."""
        self.count += len(x)
        self.sum_x += x.sum(dim=0)
        self.sum_y += y.sum(dim=0)
        self.squares_y += y.square().sum(dim=0)
        self.products_xx.addmm_(x.T, x)
        self.products_xy.addmm_(x.T, y)

    def of_difference(self) -> "Moments":
        """Return the same sums with y - x in place of y."""
        result = Moments.__new__(Moments)
        result.count, result.sum_x, result.products_xx = self.count, self.sum_x, self.products_xx
        result.sum_y = self.sum_y - self.sum_x
        result.products_xy = self.products_xy - self.products_xx
        result.squares_y = self.squares_y - 2 * self.products_xy.diagonal() + self.products_xx.diagonal()
        return result


@dataclass(frozen=True, kw_only=True)
class LinearFit:
    """R² of a linear map on tokens of texts that it was not fitted to.

    Attributes:
        output: For the layer's output, as a mean over its dimensions. None if none of them varies.
        added: For what the layer adds to its input (output - input). None if nothing that varies is added.
    """

    output: float | None
    added: float | None


def fit_linear(train: Moments, test: Moments) -> LinearFit | None:
    """Fit ridge regressions to the training tokens and evaluate them on the test tokens; None with too few tokens.

    Inputs are centred and scaled to unit variance, and the penalty is `RIDGE_PENALTY` per token.
    """
    if min(train.count, test.count) < 2:
        return None
    return LinearFit(output=_held_out_r2(train, test), added=_held_out_r2(train.of_difference(), test.of_difference()))


def _held_out_r2(train: Moments, test: Moments) -> float | None:
    mean_x, mean_y = train.sum_x / train.count, train.sum_y / train.count
    covariance_xx = train.products_xx / train.count - torch.outer(mean_x, mean_x)
    covariance_xy = train.products_xy / train.count - torch.outer(mean_x, mean_y)
    deviation = covariance_xx.diagonal().clamp_min(0).sqrt()
    # A dimension that is constant in training predicts nothing.
    scale = torch.where(deviation > _LEAST_VARIANCE * deviation.max(), 1 / deviation, torch.zeros_like(deviation))
    correlation = scale[:, None] * covariance_xx * scale
    penalty = RIDGE_PENALTY * torch.eye(len(scale), dtype=correlation.dtype, device=correlation.device)
    weights = scale[:, None] * torch.linalg.solve(correlation + penalty, scale[:, None] * covariance_xy)
    # The test tokens relative to the means of training.
    count = test.count
    products_xx = _centered(test.products_xx, test.sum_x, test.sum_x, mean_x, mean_x, count)
    products_xy = _centered(test.products_xy, test.sum_x, test.sum_y, mean_x, mean_y, count)
    squares_y = test.squares_y - 2 * mean_y * test.sum_y + count * mean_y.square()
    errors = squares_y - 2 * (weights * products_xy).sum(dim=0) + (weights * (products_xx @ weights)).sum(dim=0)
    total = test.squares_y - test.sum_y.square() / count
    varies = total > _LEAST_VARIANCE * torch.maximum(test.squares_y, test.products_xx.diagonal())
    if not bool(varies.any()):
        return None
    return float((1 - errors[varies] / total[varies]).mean())


def _centered(products: Tensor, sum_x: Tensor, sum_y: Tensor, mean_x: Tensor, mean_y: Tensor, count: int) -> Tensor:
    """Return the sum of (x - mean_x) (y - mean_y)' from the sum of x y'."""
    return products - torch.outer(mean_x, sum_y) - torch.outer(sum_x, mean_y) + count * torch.outer(mean_x, mean_y)
