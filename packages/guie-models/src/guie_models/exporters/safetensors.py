"""Export to safetensors, with a model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from guie_core.files import atomic_write
from guie_models.embedder import Embedder
from guie_models.exporters.parity import ExportReport, Limits, ready, staged, verify
from guie_models.saved import Design, load, save


class Safetensors:
    """`embedder.safetensors`: the whole embedder, which `guie_models.load` reads back; `README.md`: its model card.

    The file holds tensors and a description, and nothing that could be executed. It is loaded back and run on `images`
    before it gets its name; where a value differs by more than `max_difference` nothing is left and GuieError is
    raised. categories: names of the classifier's outputs, kept in the file. about: lines for the card, such as what the
    model was trained on and under which licence.
    """

    filename = "embedder.safetensors"

    def __init__(self, categories: Sequence[str] = (), about: str = "", max_difference: float = 1e-6) -> None:
        self.categories = tuple(categories)
        self.about = about
        self.limits = Limits(max_difference, 1 - 1e-6)

    @torch.no_grad()
    def export(self, embedder: Embedder, directory: str | Path, images: Sequence[Tensor]) -> ExportReport:
        """Writes directory/embedder.safetensors and README.md, verified on `images`, raw ones [3, H, W] in 0..255."""
        embedder, raw = ready(embedder, images, "safetensors")
        expected = embedder.embed(raw)
        with staged(Path(directory)) as folder:
            path = folder / self.filename
            save(embedder, path, self.categories)
            loaded = load(path)
            final = Path(directory) / path.name
            report = verify(path, final, lambda: loaded.embed(raw), expected, self.limits, "safetensors")
            with atomic_write(folder / "README.md", "w") as file:
                file.write(_card(embedder, Design.of(embedder, self.categories), self.about, report))
        return report


def _card(embedder: Embedder, design: Design, about: str, report: ExportReport) -> str:
    backbone = design.backbone["type"]
    licence = design.backbone_about["licence"] or "not recorded; ask its publisher"
    augmentation = "none"
    if design.augmentation is not None:
        padded = [_category(design, number) for number in design.augmentation["padded_for"]]
        augmentation = f"switched by aspect, centre crop {design.augmentation['crop']:g}"
        augmentation += f"; padded view for {', '.join(padded)}" if padded else ""
    facts = {
        "embedding": f"{embedder.head.out_features} dimensions, L2-normalised; compare by cosine or L2 distance",
        "backbone": f"{backbone}, {embedder.size} px; licence of its weights: {licence}",
        "head": f"{design.head['type']} on {design.head['in_features']} features"
        + (f" and {embedder.head.size_features} size values" if embedder.with_sizes else ""),
        "test-time augmentation": augmentation,
        "parameters": f"{sum(tensor.numel() for tensor in embedder.state_dict().values()):,}",
        "proof": f"loaded back and compared on {report.images} images: largest difference {report.max_difference:.1e}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""# An image embedding made with guie

{about.strip() + chr(10) * 2 if about.strip() else ""}| | |
|---|---|
{table}

```python
import guie_models

embedder = guie_models.load("embedder.safetensors")
embedding = embedder(image)  # raw image [1, 3, H, W], 0..255, any size -> [1, {embedder.head.out_features}]
many = embedder.embed(images)  # a list of [3, H, W] of any sizes -> [N, {embedder.head.out_features}]
```
"""


def _category(design: Design, number: int) -> str:
    return design.categories[number] if number < len(design.categories) else f"category {number}"
