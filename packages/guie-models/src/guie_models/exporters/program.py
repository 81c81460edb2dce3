"""Export to a program of torch.export."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from guie_core import GuieError
from guie_models.embedder import Embedder
from guie_models.exporters.onnx import Preprocessed, batches, left_out, preprocessed
from guie_models.exporters.parity import ExportReport, Limits, ready, staged, verify


class Program:
    """`model.pt2`: `images` [B, 3, h, w], preprocessed by the embedder's view, and `sizes` [B, 3] -> embedding [B, E],
    as `torch.export.load(path).module()` runs it, without guie and timm; what torch.compile and AOTInductor take.

    The batch is dynamic. Views and switched augmentation are left to the caller, as with `Onnx`. Loaded back and run on
    `images` before it gets its name; beyond the limits nothing is left and GuieError is raised.
    """

    filename = "model.pt2"

    def __init__(self, max_difference: float = 1e-4, min_cosine: float = 0.9999) -> None:
        self.limits = Limits(max_difference, min_cosine)

    @torch.no_grad()
    def export(self, embedder: Embedder, directory: str | Path, images: Sequence[Tensor]) -> ExportReport:
        """Writes directory/model.pt2, verified on `images`, raw ones [3, H, W] in 0..255."""
        embedder, raw = ready(embedder, images, "torch.export")
        views, sizes, expected = preprocessed(embedder, raw)
        batch = torch.export.Dim("batch", max=2**31 - 1)
        example = (views[:1].expand(2, -1, -1, -1).contiguous(), sizes[:1].expand(2, -1).contiguous())
        shapes = {"images": {0: batch}, "sizes": {0: batch}}
        with staged(Path(directory)) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            path = folder / self.filename
            try:
                program = torch.export.export(Preprocessed(embedder.folded()).eval(), example, dynamic_shapes=shapes)
                buffer = io.BytesIO()  # torch's own writing to a file ends the process when the disk is full
                torch.export.save(program, buffer)
                path.write_bytes(buffer.getbuffer())
                loaded: Any = torch.export.load(path).module()
            except (GuieError, OSError):
                raise
            except Exception as error:  # torch.export has many ways to say what it can't trace
                first = str(error).strip().partition("\n")[0]
                raise GuieError(f"torch.export can't trace this backbone or head: {first}") from error
            return verify(
                path,
                Path(directory) / path.name,
                lambda: torch.cat([cast(Tensor, loaded(*pair)) for pair in batches(views, sizes)]),
                expected,
                self.limits,
                "torch.export",
                left_out(embedder),
                prepared=True,
            )
