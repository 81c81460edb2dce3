"""Pooling over places, then a linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guie_core import UsageError
from guie_models.heads._checks import check_sizes


class GeM(nn.Module):
    """Generalised mean over places (arXiv 1711.02512), then one linear layer.

        pooled_d = (mean over n of max(x_nd, epsilon)^p)^(1/p)

    p = 1 is the mean, a large p nears the maximum. The formula is for features that are not negative, as convolutional
    networks have them; of others only what lies above `epsilon` counts.

    p: where it starts; it is trained, as the paper does, unless `train_p` is False.

    forward: features by place, tokens [B, N, in_features] or a map [B, in_features, h, w] -> [B, out_features]. Raises
    UsageError for another shape.
    """

    def __init__(
        self, in_features: int, out_features: int = 64, p: float = 3.0, epsilon: float = 1e-6, train_p: bool = True
    ) -> None:
        super().__init__()
        check_sizes("GeM", in_features, out_features, 0)
        if p <= 0 or epsilon <= 0:
            raise UsageError(f"GeM: p is {p} and epsilon {epsilon}; both are above 0.")
        self.in_features = in_features
        self.out_features = out_features
        self.size_features = 0
        self.p = nn.Parameter(torch.tensor(float(p)), requires_grad=train_p)
        self.epsilon = epsilon
        self.train_p = train_p
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = x.flatten(2).transpose(1, 2)
        if not torch.jit.is_scripting() and (x.dim() != 3 or x.shape[2] != self.in_features):  # type: ignore[attr-defined]
            raise UsageError(
                f"GeM takes tokens [B, N, {self.in_features}] or a map [B, {self.in_features}, h, w]; these are"
                f" {list(x.shape)}."
            )
        largest = x.amax(dim=1, keepdim=True).clamp_min(self.epsilon)
        # relative to the largest, so that no power overflows
        pooled = (x.clamp_min(self.epsilon) / largest).pow(self.p).mean(dim=1).pow(1.0 / self.p) * largest[:, 0]
        out: Tensor = self.linear(pooled)
        return out
