"""Cross-entropy over scaled cosines with an additive angular margin on the target column, and its gradient by hand.

Shapes: embeddings [B, E], centres [C, E], labels [B]; a "logits matrix" is [B, C].
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SINE_SQUARED_MIN = 1e-7
"""1 - cos^2 is not taken below this (an angle of 0.018 degrees, what float32 can tell from 1), so that the sine has a
finite slope at cosine +-1."""

NORM_MIN = 1e-12
"""Lengths are not taken below this when vectors are normalised, as in `torch.nn.functional.normalize`."""


def angular_margin(cosine: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """cos(theta + m) from cos(theta), and its derivative by cos(theta); without acos.

    For theta <= pi - m: cos(theta) cos(m) - sin(theta) sin(m), with sin(theta) = sqrt(max(1 - cos^2, 1e-7)); beyond it
    the 5th place's fallback (point 5) cos(theta) - m sin(pi - m), which keeps falling where cos(theta + m) would rise
    again. The derivative is the exact one of that expression: cos(m) + sin(m) cos / sin, or cos(m) where the sine is
    held at its least value, or 1 in the fallback.
    """
    sine_squared = 1.0 - cosine * cosine
    sine = sine_squared.clamp_min(SINE_SQUARED_MIN).sqrt()
    within = cosine >= -math.cos(margin)  # theta <= pi - m
    shifted = torch.where(
        within, cosine * math.cos(margin) - sine * math.sin(margin), cosine - margin * math.sin(math.pi - margin)
    )
    slope_of_sine = torch.where(sine_squared > SINE_SQUARED_MIN, cosine / sine, 0.0)  # its negative
    slope = torch.where(within, math.cos(margin) + math.sin(margin) * slope_of_sine, 1.0)
    return shifted, slope


class MarginSoftmax(torch.autograd.Function):
    """Mean over the batch of -log softmax(z)[label], where z = scale * cos(theta), and scale *
    angular_margin(cos(theta)) at the label.

    The gradient, with p = softmax(z), y the label's column, d the slope of the margin, x^ and w^ the normalised
    vectors:

        dz[i, j] = p[i, j] / B                for j != y
        dz[i, y] = (p[i, y] - 1) * d[i] / B
        dx^ = scale * dz @ w^                 dx = (dx^ - x^ (x^ . dx^)) / |x|
        dw^ = scale * dz.T @ x^               dw = (dw^ - w^ (w^ . dw^)) / |w|

    One logits matrix is held from forward to backward and none is made besides: the product becomes exp(z - max) in
    place, and its rows' sums are applied to the [B, E] factors of the backward products instead of to the matrix.
    Differentiable once.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, centres: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
        x_length = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True).clamp_min(NORM_MIN)
        w_length = torch.linalg.vector_norm(centres, dim=1, keepdim=True).clamp_min(NORM_MIN)
        x = embeddings / x_length
        w = centres / w_length
        column = labels[:, None]
        z = (x * scale) @ w.T
        shifted, slope = angular_margin(z.gather(1, column) / scale, margin)
        target = shifted * scale
        z.scatter_(1, column, target)
        largest = z.amax(dim=1, keepdim=True)
        z.sub_(largest).exp_()
        total = z.sum(dim=1, keepdim=True)
        loss: Tensor = (total.log() + largest - target).mean()
        z.scatter_(1, column, (z.gather(1, column) - total) * slope)  # now dz * B * total
        ctx.save_for_backward(z, total, x, w, x_length, w_length)
        ctx.scale = scale
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        z, total, x, w, x_length, w_length = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            factor = gradient * (ctx.scale / z.shape[0]) / total
            x_gradient = (z @ w) * factor
            w_gradient = z.T @ (x * factor)
        x_gradient = (x_gradient - x * (x_gradient * x).sum(dim=1, keepdim=True)) / x_length
        w_gradient.addcmul_(w, (w_gradient * w).sum(dim=1, keepdim=True), value=-1.0).div_(w_length)
        return x_gradient, w_gradient, None, None, None


def cosines(embeddings: Tensor, centres: Tensor) -> Tensor:
    """Cosine of every embedding [B, E] with every centre [C, E] -> [B, C]."""
    return F.linear(F.normalize(embeddings, eps=NORM_MIN), F.normalize(centres, eps=NORM_MIN))
