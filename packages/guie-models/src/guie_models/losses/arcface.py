"""Losses whose margin is a number, an angle or a cosine: ArcFace, CosFace, NormFace."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from guie_models.losses.base import ClassMargins, MarginLoss, ScheduledMargin
from guie_models.losses.margin_softmax import Softmax


class ArcFace(MarginLoss):
    """ArcFace (arXiv 1801.07698): softmax cross-entropy over scaled cosines, the target's angle widened by `margin`
    (5th place, point 5).

        loss = mean over i of -log( exp(s cos(theta_iy + m)) / (exp(s cos(theta_iy + m)) + sum over j != y of exp(s
        cos(theta_ij))) )

    Not easy-margin: where theta_iy > pi - m the target's logit is s (cos(theta_iy) - m sin(pi - m)). With `sub_centres`
    it is sub-centre ArcFace (ECCV 2020, "Sub-center ArcFace: Boosting Face Recognition by Large-scale Noisy Web
    Faces"); margins by class and margins that grow are arguments too.

    Shapes, state and errors are those of MarginLoss; the gradient is that of `margin_softmax`, exact: not zero where a
    clamped cosine has none, and not the straight-through one of libraries that skip acos.
    """

    def __init__(
        self,
        embedding_size: int,
        classes: int,
        scale: float = 30.0,
        margin: float | ScheduledMargin | ClassMargins = 0.5,
        check_labels: bool = False,
        sub_centres: int = 1,
        class_counts: Sequence[int] | Tensor | None = None,
        softmax: Softmax | None = None,
    ) -> None:
        super().__init__(embedding_size, classes, scale, margin, sub_centres, class_counts, softmax, check_labels)


class CosFace(MarginLoss):
    """CosFace (arXiv 1801.09414): the target's cosine lowered by `margin` (the 1st place's code: s 30, m .55, then
    .65).

        loss = mean over i of -log( exp(s (cos(theta_iy) - m)) / (exp(s (cos(theta_iy) - m)) + sum over j != y of exp(s
        cos(theta_ij))) )

    Shapes, state, gradient and errors are those of MarginLoss.
    """

    margin_range = (0.0, 2.0)
    margin_unit = "a difference of cosines, from 0 to below 2"

    def __init__(
        self,
        embedding_size: int,
        classes: int,
        scale: float = 30.0,
        margin: float | ScheduledMargin | ClassMargins = 0.35,
        check_labels: bool = False,
        sub_centres: int = 1,
        class_counts: Sequence[int] | Tensor | None = None,
        softmax: Softmax | None = None,
    ) -> None:
        super().__init__(embedding_size, classes, scale, margin, sub_centres, class_counts, softmax, check_labels)

    def margins(self, embedding: Tensor, labels: Tensor) -> tuple[float | Tensor, float | Tensor]:
        return 0.0, self.margin_of(labels)


class NormFace(MarginLoss):
    """NormFace (arXiv 1704.06369): softmax cross-entropy over scaled cosines, without a margin; the host's baseline
    normalises nothing, and smooths its labels.

        loss = mean over i of -log( exp(s cos(theta_iy)) / sum over j of exp(s cos(theta_ij)) )

    Shapes, state, gradient and errors are those of MarginLoss.
    """

    def __init__(
        self,
        embedding_size: int,
        classes: int,
        scale: float = 30.0,
        check_labels: bool = False,
        sub_centres: int = 1,
        softmax: Softmax | None = None,
    ) -> None:
        super().__init__(embedding_size, classes, scale, 0.0, sub_centres, None, softmax, check_labels)
