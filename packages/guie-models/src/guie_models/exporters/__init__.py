"""Exporters: from an embedder to a file that runs without guie and is proven equal on real images."""

from __future__ import annotations

from guie_models.exporters.onnx import Onnx
from guie_models.exporters.parity import ExportReport
from guie_models.exporters.program import Program
from guie_models.exporters.safetensors import Safetensors
from guie_models.exporters.torchscript import TorchScript

__all__ = ["ExportReport", "Onnx", "Program", "Safetensors", "TorchScript"]
