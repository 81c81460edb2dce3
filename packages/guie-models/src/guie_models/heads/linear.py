"""Heads of one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guie_models.heads._checks import check_batch, check_dropout, check_input, check_sizes


class Linear(nn.Module):
    """Dropout, then one linear layer with bias (UniFEx, arXiv 2409.13513; also the 5th place's classifier, point 9).

    forward: x [B, in_features + size_features] -> [B, out_features]. Raises UsageError for another width.
    """

    def __init__(self, in_features: int, out_features: int = 64, dropout: float = 0.0, size_features: int = 0) -> None:
        super().__init__()
        check_sizes("Linear", in_features, out_features, size_features)
        check_dropout("Linear", dropout)
        self.in_features = in_features
        self.out_features = out_features
        self.size_features = size_features
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features + size_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            check_input("Linear", x, self.in_features, self.size_features)
        out: Tensor = self.linear(self.dropout(x))
        return out


class BatchNormLinear(nn.Module):
    """Batch normalisation without affine parameters, dropout, then one linear layer with bias (5th place, point 4).

    The recipe's is `BatchNormLinear(1024, 64)`: BatchNorm1d(1027, eps 1e-6, momentum 0.1), no dropout, Linear(1027,
    64), default initialisation.

    forward: x [B, in_features + size_features] -> [B, out_features]. Raises UsageError for another width, and for a
    batch of one in training, whose variance doesn't exist.
    """

    def __init__(self, in_features: int, out_features: int = 64, dropout: float = 0.0, size_features: int = 3) -> None:
        super().__init__()
        check_sizes("BatchNormLinear", in_features, out_features, size_features)
        check_dropout("BatchNormLinear", dropout)
        self.in_features = in_features
        self.out_features = out_features
        self.size_features = size_features
        self.norm = nn.BatchNorm1d(in_features + size_features, eps=1e-6, momentum=0.1, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features + size_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            check_input("BatchNormLinear", x, self.in_features, self.size_features)
            check_batch("BatchNormLinear", x, self.training)
        out: Tensor = self.linear(self.dropout(self.norm(x)))
        return out


class LinearBatchNormPReLU(nn.Module):
    """Dropout, a linear layer, batch normalisation, then PReLU with one slope a dimension (10th place of the
    contest, on the features of several frozen towers).

    forward: x [B, in_features + size_features] -> [B, out_features]. The linear layer has no bias, which the batch norm
    would take away. Raises UsageError for another width, and for a batch of one in training.
    """

    def __init__(self, in_features: int, out_features: int = 64, dropout: float = 0.0, size_features: int = 0) -> None:
        super().__init__()
        check_sizes("LinearBatchNormPReLU", in_features, out_features, size_features)
        check_dropout("LinearBatchNormPReLU", dropout)
        self.in_features = in_features
        self.out_features = out_features
        self.size_features = size_features
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features + size_features, out_features, bias=False)
        self.norm = nn.BatchNorm1d(out_features)
        self.activation = nn.PReLU(out_features)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            check_input("LinearBatchNormPReLU", x, self.in_features, self.size_features)
            check_batch("LinearBatchNormPReLU", x, self.training)
        out: Tensor = self.activation(self.norm(self.linear(self.dropout(x))))
        return out
