"""Losses on normalised embeddings and class centres."""

from __future__ import annotations

from guie_models.losses.arcface import ArcFace

__all__ = ["ArcFace"]
