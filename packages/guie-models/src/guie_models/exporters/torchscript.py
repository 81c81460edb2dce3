"""Export to TorchScript."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from guie_core import GuieError
from guie_models import _quiet
from guie_models.embedder import Embedder
from guie_models.exporters.parity import ExportReport, Limits, ready, staged, verify


class TorchScript:
    """`saved_model.pt`: one raw image [1, 3, H, W], float 0..255, any size -> its embedding [1, E], L2-normalised.

    The whole embedder, views and switched augmentation included; `torch.jit.load` runs it without guie (the contest's
    form of a model). It is loaded back and run on `images` before it gets its name; beyond `max_difference` in any
    value, below `min_cosine` for any image, or with another top-5 nothing is left and GuieError is raised.
    """

    filename = "saved_model.pt"

    def __init__(self, max_difference: float = 1e-4, min_cosine: float = 0.9999) -> None:
        self.limits = Limits(max_difference, min_cosine)

    @torch.no_grad()
    def export(self, embedder: Embedder, directory: str | Path, images: Sequence[Tensor]) -> ExportReport:
        """Writes directory/saved_model.pt, verified on `images`, raw ones [3, H, W] in 0..255."""
        embedder, raw = ready(embedder, images, "TorchScript")
        batches = [image.to(torch.float32).unsqueeze(0) for image in raw]
        expected = torch.cat([embedder(image) for image in batches])
        with staged(Path(directory)) as folder, _quiet.torchscript():
            path = folder / self.filename
            try:
                with open(path, "wb") as file:
                    torch.jit.save(embedder.script(), file)
                loaded: Any = torch.jit.load(path, map_location="cpu")
            except (GuieError, OSError):
                raise
            except Exception as error:  # the compiler raises exceptions of half a dozen unrelated types
                raise GuieError(f"TorchScript can't hold this embedder: {str(error).strip()}") from error
            for image in batches[:2]:  # the first runs compile
                loaded(image)
            return verify(
                path,
                Path(directory) / path.name,
                lambda: torch.cat([cast(Tensor, loaded(image)) for image in batches]),
                expected,
                self.limits,
                "TorchScript",
            )
