"""Losses that depend on the image's quality, on chance, or on how training goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from guie_core import UsageError
from guie_models.losses.base import ClassMargins, MarginLoss, ScheduledMargin
from guie_models.losses.margin_softmax import Softmax


class AdaFace(MarginLoss):
    """AdaFace (arXiv 2204.00964): hard images count more where the embedding is long, which tells that the image is
    good, and less where it is short.

        k[i] = clip( (|x_i| - mean) / (deviation / h), -1, 1 ),  |x_i| clipped to [.001, 100]
        target's logit = s (cos(theta_iy - m k[i]) - (m + m k[i]))

    `length_mean` and `length_deviation`, part of the state dictionary, follow those of the training batches: new =
    momentum * batch's + (1 - momentum) * old, before they are used; a batch of one has no deviation and moves the mean
    alone. No gradient passes through k.

    Where theta_iy - m k leaves [0, pi] the published code holds it there; this one does so at 0 and falls back to
    ArcFace's formula beyond pi, whose gradient isn't zero. Shapes, gradient and errors are those of MarginLoss.
    """

    margin_range = (0.0, 1.0)
    margin_unit = "both an angle and a difference of cosines, from 0 to below 1"

    def __init__(
        self,
        embedding_size: int,
        classes: int,
        scale: float = 64.0,
        margin: float = 0.4,
        h: float = 0.333,
        momentum: float = 0.01,
        check_labels: bool = False,
        sub_centres: int = 1,
        softmax: Softmax | None = None,
    ) -> None:
        super().__init__(embedding_size, classes, scale, margin, sub_centres, None, softmax, check_labels)
        if not h > 0 or not 0 < momentum <= 1:
            raise UsageError(f"AdaFace: h is {h} and momentum {momentum}; h is above 0, momentum above 0 and up to 1.")
        self.h = h
        self.momentum = momentum
        self.register_buffer("length_mean", torch.tensor(20.0))
        self.register_buffer("length_deviation", torch.tensor(100.0))

    length_mean: Tensor
    length_deviation: Tensor

    def margins(self, embedding: Tensor, labels: Tensor) -> tuple[float | Tensor, float | Tensor]:
        margin = self.margin_of(labels)
        quality = (_lengths(embedding) - self.length_mean) / (self.length_deviation + 1e-3) * self.h
        quality = quality.clamp(-1.0, 1.0)
        return -margin * quality, margin + margin * quality

    @property
    def by_image(self) -> bool:
        return False  # margins follow the lengths of all

    def _observe(self, embedding: Tensor, labels: Tensor) -> None:
        length = _lengths(embedding)
        _follow(self.length_mean, length.mean(), self.momentum)
        if len(length) > 1:
            _follow(self.length_deviation, length.std(), self.momentum)


class ElasticFace(MarginLoss):
    """ElasticFace (arXiv 2109.09416): every image's margin drawn from a normal distribution around `margin`.

        kind "arc": target's logit = s cos(theta_iy + m_i),     m_i ~ N(margin, deviation)
        kind "cos": target's logit = s (cos(theta_iy) - m_i)

    In training alone; in evaluation it is ArcFace or CosFace. The draw is that of torch's generator of the embedding's
    device, as dropout's masks: `torch.manual_seed` seeds it. A draw below 0 is 0, and beyond pi the target falls back
    as ArcFace's does, where the published code lets cos(theta + m) rise again. Shapes, state, gradient and errors are
    those of MarginLoss.
    """

    def __init__(
        self,
        embedding_size: int,
        classes: int,
        scale: float = 64.0,
        margin: float | ScheduledMargin | ClassMargins = 0.5,
        deviation: float = 0.05,
        kind: Literal["arc", "cos"] = "arc",
        check_labels: bool = False,
        sub_centres: int = 1,
        class_counts: Sequence[int] | Tensor | None = None,
        softmax: Softmax | None = None,
    ) -> None:
        super().__init__(embedding_size, classes, scale, margin, sub_centres, class_counts, softmax, check_labels)
        if not 0 <= deviation <= 0.5 or kind not in ("arc", "cos"):
            raise UsageError(
                f"ElasticFace: deviation is {deviation} and kind {kind!r}; deviation is from 0 to .5, kind 'arc' or"
                " 'cos'."
            )
        self.deviation = deviation
        self.kind = kind

    def margins(self, embedding: Tensor, labels: Tensor) -> tuple[float | Tensor, float | Tensor]:
        margin = self.margin_of(labels)
        if self.training:
            draw = torch.randn(len(embedding), dtype=embedding.dtype, device=embedding.device)
            margin = (margin + draw * self.deviation).clamp(0.0, 3.14)
        return (margin, 0.0) if self.kind == "arc" else (0.0, margin)

    @property
    def by_image(self) -> bool:
        return not self.training and super().by_image  # margins are drawn for the whole batch


class CurricularFace(MarginLoss):
    """CurricularFace (arXiv 2004.00288): ArcFace, whose hard negatives weigh little at first and more as training goes
    on.

        target's logit = s cos(theta_iy + m)
        negative's logit = s cos(theta_ij)                              where cos(theta_ij) <= cos(theta_iy + m)
                           s cos(theta_ij) (t + cos(theta_ij))          elsewhere

    `t`, part of the state dictionary, follows the mean cosine of targets in training batches: new = .01 * batch's + .99
    * old, before it is used. The gradient takes t, and which negatives are hard, as constants. Shapes and errors are
    those of MarginLoss.
    """

    def __init__(
        self,
        embedding_size: int,
        classes: int,
        scale: float = 64.0,
        margin: float | ScheduledMargin | ClassMargins = 0.5,
        momentum: float = 0.01,
        check_labels: bool = False,
        class_counts: Sequence[int] | Tensor | None = None,
        softmax: Softmax | None = None,
    ) -> None:
        super().__init__(embedding_size, classes, scale, margin, 1, class_counts, softmax, check_labels)
        if not 0 < momentum <= 1:
            raise UsageError(f"CurricularFace: momentum is {momentum}; it is above 0 and up to 1.")
        self.momentum = momentum
        self.register_buffer("t", torch.zeros(()))

    t: Tensor

    @property
    def by_image(self) -> bool:
        return False  # what is hard follows the targets of all

    def _observe(self, embedding: Tensor, labels: Tensor) -> None:
        super()._observe(embedding, labels)
        _follow(self.t, cosine_similarity(embedding, self._centres_of(labels)).mean(), self.momentum)

    def _hardness(self) -> Tensor | None:
        return self.t


def _lengths(embedding: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(embedding, dim=1)
    return length.clamp(0.001, 100.0)


def _follow(state: Tensor, value: Tensor, momentum: float) -> None:
    """Move a running mean towards `value`; one that isn't finite leaves it, for a skipped step to leave no trace."""
    value = value.to(state.dtype)
    state.copy_(torch.where(value.isfinite(), state.lerp(value, momentum), state))
