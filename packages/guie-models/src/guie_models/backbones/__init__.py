"""Backbones by name, with their weights: from images to features."""

from __future__ import annotations

from guie_models.backbones.backbone import Backbone
from guie_models.backbones.concatenated import Concatenated
from guie_models.backbones.open_clip import OpenClipBackbone
from guie_models.backbones.timm import TimmBackbone

__all__ = ["Backbone", "Concatenated", "OpenClipBackbone", "TimmBackbone"]
