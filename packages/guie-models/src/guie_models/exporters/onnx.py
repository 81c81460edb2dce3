"""Export to ONNX."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from guie_core import GuieError, UsageError
from guie_models.embedder import Embedder
from guie_models.exporters.parity import ExportReport, Limits, ready, staged, verify
from guie_models.views import size_values

LARGEST_FILE = 2**31 - 2**24
"""Bytes of weights that go into the .onnx file itself: protobuf ends at 2 GiB."""


Precision = Literal["float32", "float16", "int8"]

#: What a precision may change, where the experiment says nothing else.
LIMITS: dict[Precision, Limits] = {
    "float32": Limits(1e-4, 0.9999),
    "float16": Limits(2e-2, 0.999, min_agreement=0.95),
    "int8": Limits(1e-1, 0.98, min_agreement=0.8),
}


class Onnx:
    """`model.onnx`: `images` [B, 3, h, w], preprocessed by the embedder's view, and `sizes` [B, 3] -> `embedding` [B,
    E].

    The batch is dynamic. Views and switched augmentation are left to the caller; `sizes` are `guie_models.size_values`
    of the raw images (an input even where the head doesn't read them). One file; weights beyond 2 GB, which ONNX can't
    hold, stand beside it as model.onnx.data. Loaded back and run by onnxruntime on the CPU, in batches of several
    sizes, before it gets its name; beyond `max_difference` in any value, below `min_cosine` for any image, or with
    less than `min_agreement` of the top-5 the same nothing is left and GuieError is raised, as it is without the extra
    `onnx` or `onnx-gpu`. Limits that are not given are those of `LIMITS`.

    precision: "float16" writes `model-float16.onnx`, weights and arithmetic in 16 bits, inputs and outputs in 32: half
    the size, and faster on GPUs only. "int8" writes `model-int8.onnx`, the weights of matrix products in 8 bits, their
    activations quantised as they come (dynamic quantisation): a quarter of the size and about twice the speed of vision
    transformers on CPUs; convolutions stay in float32.
    """

    def __init__(
        self,
        precision: Precision = "float32",
        max_difference: float | None = None,
        min_cosine: float | None = None,
        min_agreement: float | None = None,
    ) -> None:
        if precision not in LIMITS:
            raise UsageError(f"ONNX: precision is {precision!r}; it is one of {', '.join(LIMITS)}.")
        self.precision = precision
        self.filename = "model.onnx" if precision == "float32" else f"model-{precision}.onnx"
        given = {"max_difference": max_difference, "min_cosine": min_cosine, "min_agreement": min_agreement}
        self.limits = replace(LIMITS[precision], **{name: value for name, value in given.items() if value is not None})
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise GuieError(
                f"Export to ONNX needs {', '.join(missing)}: pip install 'guie-models[onnx]', or"
                " 'guie-models[onnx-gpu]' to run such models on an NVIDIA GPU too (not both: they share one import"
                " name)."
            )

    @torch.no_grad()
    def export(self, embedder: Embedder, directory: str | Path, images: Sequence[Tensor]) -> ExportReport:
        """Writes directory/model.onnx, verified on `images`, raw ones [3, H, W] in 0..255."""
        embedder, raw = ready(embedder, images, "ONNX")
        views, sizes, expected = preprocessed(embedder, raw)
        with staged(Path(directory)) as folder:
            path = folder / "model.onnx"
            _write(embedder, path, views[:1].expand(2, -1, -1, -1), sizes[:1].expand(2, -1))
            if self.precision != "float32":
                path = _convert(path, self.precision)
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # errors; the GPU build warns of a missing GPU
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

            def run() -> Tensor:
                return torch.cat(
                    [
                        torch.from_numpy(session.run(["embedding"], {"images": x.numpy(), "sizes": s.numpy()})[0])
                        for x, s in batches(views, sizes)
                    ]
                )

            what, note = f"ONNX, {self.precision}", left_out(embedder)
            return verify(path, Path(directory) / path.name, run, expected, self.limits, what, note, prepared=True)


def left_out(embedder: Embedder) -> str:
    """Of a file that starts after the view: which of the embedder's parts it is without, in words."""
    return "" if embedder.augmentation is None else "compared without the test-time augmentation, which the file hasn't"


def preprocessed(embedder: Embedder, raw: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Views [N, 3, h, w] and size values [N, 3] of raw images, and their embeddings [N, E] by the embedder, without its
    augmentation."""
    views = torch.stack([embedder.view(image) for image in raw])
    sizes = torch.stack([size_values(image.shape[1], image.shape[2], embedder.size) for image in raw])
    return views, sizes, torch.cat([embedder.embed_preprocessed(*pair) for pair in batches(views, sizes)])


class Preprocessed(nn.Module):
    """An embedder from its views on: `images` [B, 3, h, w] and `sizes` [B, 3] -> embedding [B, E]."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        return self.embedder.embed_preprocessed(images, sizes)


def _write(embedder: Embedder, path: Path, images: Tensor, sizes: Tensor) -> None:
    module = Preprocessed(embedder.folded()).eval()
    weights = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    batch = torch.export.Dim("batch", max=2**31 - 1)  # torch 2.7 finds no guard for a batch without bound
    with _quiet_exporter():
        try:
            torch.onnx.export(
                module,
                (images.contiguous(), sizes.contiguous()),
                path,
                input_names=["images", "sizes"],
                output_names=["embedding"],
                dynamic_shapes={"images": {0: batch}, "sizes": {0: batch}},
                dynamo=True,
                external_data=weights > LARGEST_FILE,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise GuieError(f"ONNX: torch can't export this backbone or head: {error}") from error


def _convert(path: Path, precision: Precision) -> Path:
    """model.onnx in another precision, as a file beside it, which it replaces."""
    import onnx

    target = path.with_name(f"model-{precision}.onnx")
    model = onnx.load(path)
    # shapes of intermediate values, which both converters would take for those after their own changes
    del model.graph.value_info[:]
    with _quiet_exporter():
        if precision == "float16":
            from onnxruntime.transformers.float16 import convert_float_to_float16
            from onnxruntime.transformers.onnx_model import OnnxModel

            converted = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
            OnnxModel(converted).topological_sort()  # the casts of the inputs stand at the end, against the format
            weights = sum(len(tensor.raw_data) for tensor in converted.graph.initializer)
            onnx.save(converted, target, save_as_external_data=weights > LARGEST_FILE, location=f"{target.name}.data")
        else:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            large = path.with_name(f"{path.name}.data").exists()
            quantize_dynamic(
                model,
                target,
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=["MatMul", "Gemm"],
                use_external_data_format=large,
            )
    for file in (path, path.with_name(f"{path.name}.data")):
        file.unlink(missing_ok=True)
    return target


def batches(images: Tensor, sizes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """One image, then the others by eight: a file whose batch is fixed can't take both."""
    yield images[:1], sizes[:1]
    if len(images) > 1:
        yield from zip(images[1:].split(8), sizes[1:].split(8), strict=True)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter reports its own steps; what matters comes as an exception or is found by the comparison."""
    # onnxruntime's quantisation speaks through the root logger
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.|copyreg|onnxscript|onnx_ir")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.|copyreg|onnxscript|onnx_ir")
        # both inputs have the one batch
        warnings.filterwarnings("ignore", message=".*axis name: batch will not be used", category=UserWarning)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
