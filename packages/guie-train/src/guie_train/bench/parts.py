"""The parts that are measured: guie's own code, on work of a known size.

Each is called in a process of its own, imports what it needs first, and ends when the meter has enough.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guie_core import Config, Interrupted
from guie_core.interrupt import Stop
from guie_core.profiles import Profile
from guie_datasets import ImageRef
from guie_train.bench.memory import peak
from guie_train.bench.meter import Meter
from guie_train.bench.results import Part

if TYPE_CHECKING:
    import torch

    from guie_models.backbones import Backbone
    from guie_train.extraction import Extractor
    from guie_train.fitting import Fit

# experiments/_base_/fifth_place.py: a test holds them together
HEAD = dict(type="BatchNormLinear", out_features=64)
LOSS = dict(type="ArcFace", scale=30.0, margin=0.5)
TRAINING: dict[str, Any] = dict(
    batch_size=256,
    optimizer=dict(type="SAM", rho=0.05, base=dict(type="AdamW", lr=1e-2, weight_decay=0.1)),
    max_norm=1000.0,
    clip="true",
    epochs=1000,
    lr_min=1e-6,
    warmup_epochs=3,
    warmup_lr=1e-6,
)
VIEW = dict(type="Squash", interpolation="bilinear", antialias=False)

MANY = 65_536  # images in a row: where reading ends and begins anew, threads and GPU wait
STEPS_ON_GPU = 32  # between two looks at the clock, each of which waits for the GPU


@dataclass(frozen=True)
class Sizes:
    """How large the work is: head and search as in the 5th place, but for the rows, of which it has 368 thousand."""

    rows: int = 16_384
    features: int = 1_027
    classes: int = 15_003
    queries: int = 5_000
    index: int = 20_000
    dimension: int = 64
    k: int = 5


@dataclass(frozen=True)
class Task:
    """What to measure.

    backbone: of the parts "backbone" and "extraction". images: files to read, again and again; images_told: what tells
    them from others.
    """

    profile: Profile
    backbone: Config
    images: Sequence[ImageRef]
    images_told: Mapping[str, Any]
    seconds: float
    sizes: Sizes = field(default_factory=Sizes)


def measure(name: str, task: Task) -> Part:
    """Measures a part of PARTS. Raises GuieError as the code does that is measured."""
    return _MEASURES[name](task)


def _decode(task: Task) -> Part:
    """Bytes to uint8 [3, H, W], by the profile's workers."""
    from guie_datasets import read_images

    workers = task.profile.workers
    meter = Meter(task.seconds, warm=4 * workers)  # what is read ahead

    def images() -> Generator[Any, None, None]:
        while True:
            yield from read_images(_many(task.images), workers=workers)

    with peak() as found, closing(images()) as decoded:
        for _ in decoded:
            if meter(1):
                break
    return Part("image", meter.rate, found.memory, task.images_told, {"workers": workers})


def _backbone(task: Task) -> Part:
    """Images that lie ready [B, 3, h, w] to features on the CPU."""
    import torch

    from guie_train.extraction import Extractor  # noqa: F401  its memory is no part of the work

    device, build = _device(task), _backbone_of(task)
    meter = Meter(task.seconds)
    with peak(device) as found:
        backbone = build()
        extractor = _extractor(task, backbone, device)
        images = torch.rand(extractor.batch_size, 3, backbone.image_size, backbone.image_size)
        while not meter(len(extractor(images).cpu())):
            pass
    work = _work(backbone) | _flops(build)
    return Part("image", meter.rate, found.memory, work, _settings(task, extractor))


def _extraction(task: Task) -> Part:
    """Image files to features, as stages and `guie predict` make them."""
    from guie_core import registry
    from guie_train.extraction import extract

    device, build = _device(task), _backbone_of(task)
    with peak(device) as found:
        backbone = build()
        extractor = _extractor(task, backbone, device)
        view = registry.build("views", VIEW, size=backbone.image_size, mean=backbone.mean, std=backbone.std)
        workers = task.profile.workers
        meter = Meter(task.seconds, warm=extractor.batch_size + 4 * workers)  # what is read ahead

        def batches() -> Generator[Any, None, None]:
            while True:
                yield from extract(extractor, _many(task.images), view, target=backbone.image_size, workers=workers)

        with closing(batches()) as all_batches:
            for batch in all_batches:
                if meter(batch.images):
                    break
    settings = _settings(task, extractor) | {"workers": workers}
    return Part("image", meter.rate, found.memory, {**task.images_told, **_work(backbone), "view": VIEW}, settings)


def _head(task: Task) -> Part:
    """Steps of the head's training on resident features: the 5th place's head, loss and optimiser."""
    import torch

    from guie_core.registry import build
    from guie_train.fitting import Fit, Resident, Training
    from guie_train.heads import HeadWithLoss

    device, sizes = _device(task), task.sizes
    training = Training(**TRAINING)
    torch.manual_seed(0)
    with peak(device) as found, tempfile.TemporaryDirectory() as folder:
        model = HeadWithLoss(
            build("heads", HEAD, in_features=sizes.features, size_features=0),
            build("losses", LOSS, embedding_size=HEAD["out_features"], classes=sizes.classes),
        ).to(device)
        features = torch.randn(sizes.rows, sizes.features, device=device)
        labels = torch.randint(sizes.classes, (sizes.rows,), device=device)
        examples, graphs = Resident(features, labels), task.profile.cuda_graphs
        fit = Fit(model, examples, training, seed=0, folder=Path(folder), name="head", cuda_graphs=graphs)
        meter = Meter(task.seconds, warm=2)
        with suppress(Interrupted):
            fit.run(_Enough(fit, meter, device))
    work = {"head": HEAD, "loss": LOSS, "optimizer": training.optimizer, "batch": training.batch_size}
    work |= {"features": sizes.features, "classes": sizes.classes, "rows": sizes.rows}
    settings = {"device": device.type, "dtype": "float32"} | ({"CUDA graphs": graphs} if device.type == "cuda" else {})
    return Part("step", meter.rate, found.memory, work, settings | _threads(device))


def _search(task: Task) -> Part:
    """Nearest neighbours, as the choice of a checkpoint looks for them."""
    import numpy as np

    from guie_train.retrieval import search

    device, sizes = _device(task), task.sizes
    random = np.random.default_rng(0)
    meter = Meter(task.seconds)
    with peak(device) as found:
        queries = random.standard_normal((sizes.queries, sizes.dimension), dtype=np.float32)
        index = random.standard_normal((sizes.index, sizes.dimension), dtype=np.float32)
        while not meter(len(search(queries, index, sizes.k, device=device).indices)):
            pass
    work = {"queries": sizes.queries, "index": sizes.index, "dimension": sizes.dimension, "k": sizes.k}
    return Part("query", meter.rate, found.memory, work, {"device": device.type} | _threads(device))


_MEASURES: Mapping[str, Callable[[Task], Part]] = {
    "decode": _decode,
    "backbone": _backbone,
    "extraction": _extraction,
    "head": _head,
    "search": _search,
}


class _Enough(Stop):
    """Ends a training when the meter has enough: `Fit` asks it after each step."""

    def __init__(self, fit: Fit, meter: Meter, device: torch.device) -> None:
        super().__init__()
        self._fit = fit
        self._meter = meter
        self._gpu = device if device.type == "cuda" else None
        self._seen = self._steps()

    def __bool__(self) -> bool:
        import torch

        new = self._steps() - self._seen
        if new >= (1 if self._gpu is None else STEPS_ON_GPU) and not super().__bool__():
            if self._gpu is not None:
                torch.cuda.synchronize(self._gpu)  # steps are done, and not only launched
            self._seen += new
            if self._meter(new):
                self.request()
        return super().__bool__()

    def _steps(self) -> int:
        return self._fit.epoch * self._fit.steps + self._fit.step


def _many(images: Sequence[ImageRef]) -> Sequence[ImageRef]:
    return list(images) * -(-MANY // len(images))


def _device(task: Task) -> torch.device:
    from guie_train.device import device_of

    return device_of(task.profile)


def _threads(device: torch.device) -> dict[str, int]:
    import torch

    return {"threads": torch.get_num_threads()} if device.type == "cpu" else {}


def _backbone_of(task: Task) -> Callable[[], Backbone]:
    """Builds the backbone; what that imports is imported already."""
    from guie_core.registry import build, load
    from guie_core.signature import signature

    config = dict(task.backbone)
    if "weights" in signature(load("backbones", config["type"])).hints:
        config.setdefault("weights", "none")  # random ones take as long, and need no download
    return lambda: build("backbones", config, where="--backbone")


def _work(backbone: Backbone) -> dict[str, Any]:
    return {"backbone": backbone.name, "image_size": backbone.image_size, "features": backbone.features}


def _flops(build: Callable[[], Backbone]) -> dict[str, int]:
    """Operations for an image, as a plan counts them; nothing where they can't be counted."""
    import torch

    from guie_train.planning.known import NotKnown
    from guie_train.planning.meta import on_meta, trace

    try:
        backbone = on_meta(build)
        image = torch.empty(1, 3, backbone.image_size, backbone.image_size, device="meta")
        with torch.inference_mode():
            return {"flops_per_image": trace(lambda: backbone(image)).operations}
    except NotKnown:
        return {}


def _extractor(task: Task, backbone: Backbone, device: torch.device) -> Extractor:
    from guie_train.extraction import Extractor

    batch = task.profile.micro_batch("features", 64)
    return Extractor(backbone, device, compute=task.profile.dtype, batch_size=batch, name="features")


def _settings(task: Task, extractor: Extractor) -> dict[str, Any]:
    """How a backbone was run; its batch is smaller than the profile's if the memory was."""
    about = {"device": extractor.device.type, "dtype": task.profile.dtype, "batch": extractor.batch_size}
    return about | _threads(extractor.device)
