"""Losses on embeddings and labels; most of them on normalised embeddings and class centres."""

from __future__ import annotations

from guie_models.losses.adaptive import AdaFace, CurricularFace, ElasticFace
from guie_models.losses.arcface import ArcFace, CosFace, NormFace
from guie_models.losses.base import ClassMargins, MarginLoss, ScheduledMargin
from guie_models.losses.margin_softmax import Softmax
from guie_models.losses.pml import PmlLoss

__all__ = [
    "AdaFace",
    "ArcFace",
    "ClassMargins",
    "CosFace",
    "CurricularFace",
    "ElasticFace",
    "MarginLoss",
    "NormFace",
    "PmlLoss",
    "ScheduledMargin",
    "Softmax",
]
