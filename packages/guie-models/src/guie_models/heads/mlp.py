"""A head of several layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from guie_core import UsageError
from guie_models.heads._checks import check_batch, check_dropout, check_input, check_sizes

_NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}
_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "prelu": nn.PReLU}


class MLP(nn.Module):
    """Hidden layers of linear, norm, activation and dropout, then a linear layer with bias (13th place: 256, then 64).

    hidden: their widths. norm: of each hidden layer, "batch", "layer" or "none".

    forward: x [B, in_features + size_features] -> [B, out_features]. Raises UsageError for another width, and with
    norm="batch" for a batch of one in training.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 64,
        hidden: Sequence[int] = (256,),
        dropout: float = 0.0,
        norm: Literal["batch", "layer", "none"] = "batch",
        activation: Literal["relu", "gelu", "prelu"] = "relu",
        size_features: int = 0,
    ) -> None:
        super().__init__()
        check_sizes("MLP", in_features, out_features, size_features)
        check_dropout("MLP", dropout)
        if norm not in _NORMS or activation not in _ACTIVATIONS:
            raise UsageError(
                f"MLP: norm is {norm!r} and activation {activation!r}; they are one of {', '.join(_NORMS)} and one of"
                f" {', '.join(_ACTIVATIONS)}."
            )
        if any(width < 1 for width in hidden):
            raise UsageError(
                f"MLP: hidden is {tuple(hidden)}; it holds the widths of the hidden layers, each 1 or more."
            )
        self.in_features = in_features
        self.out_features = out_features
        self.size_features = size_features
        self.hidden = tuple(hidden)
        self.dropout = dropout
        self.norm: str = norm
        self.activation: str = activation
        widths = [in_features + size_features, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            normalised = _NORMS[norm](after)
            bias = norm == "none"  # a norm has its own
            layers += [nn.Linear(before, after, bias=bias), normalised, _ACTIVATIONS[activation](), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], out_features))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            check_input("MLP", x, self.in_features, self.size_features)
            check_batch("MLP", x, self.training and self.norm == "batch" and len(self.hidden) > 0)
        out: Tensor = self.layers(x)
        return out
