"""Models on the disk, whatever their form, as one thing: decoded images in, embeddings out."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import shutil
import tempfile
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import guie_models
from guie_core import Config, GuieError, Problem, UsageError, build
from guie_core.errors import ExperimentError
from guie_core.processors import processors
from guie_core.profiles import Profile
from guie_core.wording import did_you_mean, listing, plural, shown
from guie_datasets import BadImage
from guie_models import CenterCrop, Embedder, Squash, size_values
from guie_train.device import device_of, out_of_memory, within_memory

Kind = Literal["safetensors", "TorchScript", "ONNX"]
MEMBER = "saved_model.pt"  #: the contest's name for a model, in its zip
IN_A_RUN: dict[Kind, str] = {"safetensors": "embedder.safetensors", "TorchScript": MEMBER, "ONNX": "model.onnx"}
_SUFFIXES: dict[str, Kind] = {
    ".safetensors": "safetensors",
    ".zip": "TorchScript",
    ".pt": "TorchScript",
    ".pth": "TorchScript",
    ".onnx": "ONNX",
}

T = TypeVar("T")


class Model(ABC, Generic[T]):
    """A model that is ready to run; used as a context manager while it does.

    `prepare` runs in several threads, a call for each image; `embed` in one, for the images of a batch. A row of its
    result depends on the batch in its last bits at most, and is the same whenever the batch is.
    """

    dimension: int  #: E, of an embedding
    batch_size: int  #: images at once
    workers: int | None = None  #: threads that pay where `prepare` runs the model itself, not as for reading; else None

    @abstractmethod
    def prepare(self, image: NDArray[np.uint8]) -> T:
        """What is made of a decoded image [3, H, W] ahead of its batch. Raises BadImage: the model fails on it."""

    @abstractmethod
    def embed(self, images: Sequence[T]) -> NDArray[np.float32]:
        """Embeddings [n, E] of n = 1..batch_size prepared images."""

    @abstractmethod
    def held(self, image: T) -> int:
        """Bytes that a prepared image holds."""

    def __enter__(self) -> Model[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


@dataclass(frozen=True)
class ModelFile:
    """A model that was found, not yet loaded.

    path: the file that holds it. view: for ONNX, whose files have none, the settings of one where the user gives them.
    """

    path: Path
    kind: Kind
    view: Config | None = None

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits (BLAKE2b) over the bytes of the file, and of the weights beside it."""
        whole = hashlib.blake2b(digest_size=16)
        for path in (self.path, self.path.with_name(f"{self.path.name}.data")):
            if path == self.path or (self.kind == "ONNX" and path.is_file()):
                try:
                    with open(path, "rb") as file:
                        while block := file.read(1 << 20):
                            whole.update(block)
                except OSError as error:
                    raise GuieError(f"{path}: cannot be read: {error.strerror or error}") from error
        return whole.hexdigest()

    @cached_property
    def note(self) -> str:
        """What people have to know of the model's embeddings, as far as the files beside it tell; "" for nothing."""
        if self.kind != "ONNX" or not _augmented(self.path):
            return ""
        return (
            f"{shown(self.path)} has one view of an image: its embeddings differ from those of the same model's other "
            "files, which average several. Embed index and queries by one of them."
        )

    def open(self, profile: Profile, batch_size: int | None = None) -> Model[Any]:
        """The model on the profile's device; it has embedded an image when this returns.

        Raises GuieError: damaged, not a model, one that can't be run here, or without an embedding for an image.
        """
        device = device_of(profile)
        size = batch_size or profile.micro_batch("features", 64)
        if self.kind == "safetensors":
            embedder = guie_models.load(self.path)
            if profile.dtype != "float32" and device.type != "cpu":
                embedder = embedder.reduced(getattr(torch, profile.dtype))
            # as convolutions are fastest; other networks don't care
            embedder = embedder.to(device).to(memory_format=torch.channels_last)
            return OneView(embedder, size) if embedder.augmentation is None else Switched(embedder, size)
        if self.kind == "TorchScript":
            return Script(self.path, device, size)
        return Graph(self.path, device, size, self.view)


def find_model(where: Path, prefer: Sequence[Kind] = tuple(IN_A_RUN), view: Config | None = None) -> ModelFile:
    """The model that a path stands for: itself, or of a run's folder what it exported, in the order of `prefer`.

    Raises UsageError: no such file, a file of another kind, a run that has exported nothing, a view for a model that
    has its own.
    """
    found = _find(where.expanduser(), prefer)
    if view is not None and found.kind != "ONNX":
        raise UsageError(f"--view is for ONNX files; {shown(found.path)}, {found.kind}, has a view of its own")
    return replace(found, view=view)


def _find(path: Path, prefer: Sequence[Kind]) -> ModelFile:
    if path.is_dir():
        for folder in (path / "stages" / "export", path):
            for kind in prefer:
                if (folder / IN_A_RUN[kind]).is_file():
                    return ModelFile(folder / IN_A_RUN[kind], kind)
        wanted = listing(IN_A_RUN[kind] for kind in prefer)
        if (path / "run.json").is_file():
            raise UsageError(
                f"{shown(path)}: this run has exported no model that can be used here ({wanted}). "
                "Let it come to its end, with one of these exporters in recipe.exports: Safetensors, TorchScript, Onnx"
            )
        raise UsageError(f"{shown(path)}: neither a run's folder nor one that holds a model ({wanted})")
    if not path.is_file():
        siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(path.name, siblings)  # runs with settings of their own have a suffix
        raise UsageError(f"{shown(path)}: no such file or folder.{near} Name a run's folder or a model: {_kinds()}")
    found = _SUFFIXES.get(path.suffix.lower())
    if found == "ONNX" and "ONNX" not in prefer:
        raise UsageError(
            f"{shown(path)}: the contest takes TorchScript, which can't be made from ONNX. Name {_kinds(prefer)}"
        )
    if found is None or found not in prefer:
        raise UsageError(f"{shown(path)}: not a model that can be used here. It is one of {_kinds(prefer)}")
    return ModelFile(path, found)


def _kinds(kinds: Sequence[Kind] = tuple(IN_A_RUN)) -> str:
    return listing(f"{suffix} ({kind})" for suffix, kind in _SUFFIXES.items() if kind in kinds and suffix != ".pth")


class Viewed(Model[tuple[Tensor, Tensor]]):
    """A model of one view, which is made in the threads that read, beside the image's size values."""

    view: Squash | CenterCrop  #: on the CPU

    def prepare(self, image: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            return self.view(torch.from_numpy(image)), size_values(image.shape[1], image.shape[2], self.view.size)

    def held(self, image: tuple[Tensor, Tensor]) -> int:
        return image[0].nbytes

    def batch(self, images: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Views [batch_size, 3, h, w] and size values [batch_size, 3]; padded, so that a row never depends on how many
        there are."""
        padding = [images[0]] * (self.batch_size - len(images))
        views, sizes = zip(*images, *padding, strict=True)
        return torch.stack(views), torch.stack(sizes)


class OneView(Viewed):
    """An embedder without augmentation."""

    def __init__(self, embedder: Embedder, batch_size: int) -> None:
        self.embedder = embedder
        self.view = copy.deepcopy(embedder.view).cpu()
        self.device = embedder.view.mean.device
        self.batch_size = batch_size
        self.dimension = _dimension(self)

    def embed(self, images: Sequence[tuple[Tensor, Tensor]]) -> NDArray[np.float32]:
        views, sizes = self.batch(images)
        with torch.inference_mode(), _memory(self.device, self.batch_size):
            found = self.embedder.embed_preprocessed(
                views.to(self.device, memory_format=torch.channels_last), sizes.to(self.device)
            )
            return _array(found[: len(images)])


class Switched(Model[Tensor]):
    """An embedder with switched augmentation: it makes each image's views itself, and batches them."""

    def __init__(self, embedder: Embedder, batch_size: int) -> None:
        self.embedder = embedder
        self.device = embedder.view.mean.device
        self.batch_size = batch_size
        self.dimension = _dimension(self)

    def prepare(self, image: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(image)

    def embed(self, images: Sequence[Tensor]) -> NDArray[np.float32]:
        with torch.inference_mode(), _memory(self.device, self.batch_size):
            return _array(self.embedder.embed(images, self.batch_size))

    def held(self, image: Tensor) -> int:
        return image.nbytes


class Script(Model[Tensor]):
    """A TorchScript file, which takes one raw image at a time.

    On the CPU each thread that reads runs the model, with a core of its own: images at a time instead of cores at an
    image. On a GPU the model runs in one thread.
    """

    def __init__(self, path: Path, device: torch.device, batch_size: int) -> None:
        self.path = path
        self.device = device
        self.batch_size = batch_size
        self.dimension = 0  # not known yet
        self.workers = processors() if device.type == "cpu" else None
        self._threads = torch.get_num_threads()
        with extracted(path) as file:
            self.script = load_script(file, device, path)
        with self:
            self.dimension = _dimension(self)

    def __enter__(self) -> Script:
        self._threads = torch.get_num_threads()
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._threads)

    def prepare(self, image: NDArray[np.uint8]) -> Tensor:
        # contiguous: what a scripted model was traced with
        raw = torch.from_numpy(np.ascontiguousarray(image))
        return self._run(raw) if self.device.type == "cpu" else raw

    def embed(self, images: Sequence[Tensor]) -> NDArray[np.float32]:
        rows = images if self.device.type == "cpu" else [self._run(image) for image in images]
        return _array(torch.stack(list(rows)))

    def held(self, image: Tensor) -> int:
        return image.nbytes

    def _run(self, image: Tensor) -> Tensor:
        """The embedding [E] of one raw image."""
        try:
            with torch.inference_mode():
                found = self.script(image[None].to(self.device, torch.float32))
        except (RuntimeError, torch.jit.Error) as error:  # all that TorchScript raises is one of them
            if out_of_memory(error):
                elsewhere = "; --profile cpu uses the machine's" * (self.device.type == "cuda")
                raise GuieError(f"{shown(self.path)}: the memory is full: {_last_line(error)}{elsewhere}") from error
            raise BadImage(f"the model fails on it: {_last_line(error)}") from error
        if not isinstance(found, Tensor) or found.shape != (1, self.dimension or found.shape[-1]):
            wanted = f"[1, {self.dimension or 'D'}]"
            raise GuieError(f"{shown(self.path)}: for one image it gives {_shape(found)}, not a tensor {wanted}")
        return found[0].float().cpu()


class Graph(Viewed):
    """An ONNX file as the exporter `Onnx` writes it, and the view that stands beside it."""

    def __init__(self, path: Path, device: torch.device, batch_size: int, view: Config | None) -> None:
        self.batch_size = batch_size
        self.session = _session(path, device)
        inputs = {each.name: each.shape for each in self.session.get_inputs()}
        if set(inputs) != {"images", "sizes"} or len(inputs["images"]) != 4:
            raise GuieError(
                f"{shown(path)}: its inputs are {listing(inputs)}; a model that guie exports takes images "
                "[batch, 3, height, width] and sizes [batch, 3]"
            )
        self.view = _view(path, view, inputs["images"][-1])
        if inputs["images"][-1] != self.view.size or inputs["images"][-2] != self.view.size:
            raise GuieError(
                f"{shown(path)} takes images of {inputs['images'][-2:]} px; its view gives {self.view.size}"
            )
        self.dimension = _dimension(self)

    def embed(self, images: Sequence[tuple[Tensor, Tensor]]) -> NDArray[np.float32]:
        views, sizes = self.batch(images)
        try:
            found = self.session.run(None, {"images": views.numpy(), "sizes": sizes.numpy()})[0]
        except Exception as error:  # onnxruntime's own, which share no class
            raise GuieError(f"onnxruntime can't run the model: {_last_line(error)}") from error
        return np.asarray(found[: len(images)], np.float32)


def load_script(file: Path, device: torch.device, name: Path) -> Any:
    """A TorchScript file, in evaluation mode. Raises GuieError, with `name`, if it is none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")
        try:
            return torch.jit.load(file, map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            raise GuieError(f"{shown(name)}: not a TorchScript file, or a damaged one: {_last_line(error)}") from error


class extracted(contextlib.AbstractContextManager[Path]):  # noqa: N801  used like a function
    """The saved_model.pt of a submission's zip as a file, while the block runs; any other file as it lies there.

    Raises GuieError: not a zip, no such member in it, no room for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Path:
        if self.path.suffix.lower() != ".zip":
            return self.path
        try:
            with zipfile.ZipFile(self.path) as archive:
                if MEMBER not in archive.namelist():
                    raise GuieError(
                        f"{shown(self.path)} holds {listing(archive.namelist())}, and no {MEMBER} at its top"
                    )
                folder = tempfile.TemporaryDirectory(prefix="guie-")
                needed, free = archive.getinfo(MEMBER).file_size, shutil.disk_usage(folder.name).free
                if needed > free:
                    folder.cleanup()
                    raise GuieError(
                        f"{shown(self.path)}: its {MEMBER} has {needed:,} bytes, and {free:,} are free in "
                        f"{folder.name}; TMPDIR names another place"
                    )
                self._folder = folder
                with archive.open(MEMBER) as source, open(Path(folder.name) / MEMBER, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            self.__exit__()
            raise GuieError(f"{shown(self.path)}: not a zip, or a damaged one: {error}") from error
        except BaseException:
            self.__exit__()
            raise
        return Path(folder.name) / MEMBER

    def __exit__(self, *exception: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _session(path: Path, device: torch.device) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise GuieError(
            "ONNX files are run by onnxruntime: pip install 'guie-train[onnx]', or 'guie-train[onnx-gpu]'"
        ) from error
    provider = "CPUExecutionProvider" if device.type == "cpu" else "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise GuieError(
            "this onnxruntime has no CUDA: pip install 'guie-train[onnx-gpu]' in place of [onnx], or --profile cpu"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; the GPU build warns of a missing GPU
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime's own, which share no class
        raise GuieError(f"{shown(path)}: not an ONNX file, or a damaged one: {_last_line(error)}") from error


def _view(path: Path, config: Config | None, size: Any) -> Any:
    """The view that an ONNX file was exported with: as given, or as what stands beside the file says."""
    if config is not None:
        return build("views", config, where="--view", size=size)
    beside = path.with_name(IN_A_RUN["safetensors"])
    if beside.is_file():
        return guie_models.load(beside).view
    stage = path.with_name("stage.json")  # of the run that exported it
    if stage.is_file():
        try:
            arguments = json.loads(stage.read_text())["arguments"]
            backbone, config = dict(arguments["backbone"]), dict(arguments["view"])
        except (ValueError, KeyError, TypeError) as error:
            raise GuieError(
                f"{shown(stage)} is damaged: {error}. Say which view the model takes with --view"
            ) from error
        # for what it says of its input; its weights are random, and go again
        built: Any = build("backbones", {**backbone, "weights": "none"}, where="backbone")
        return build("views", config, where="view", size=built.image_size, mean=built.mean, std=built.std)
    raise UsageError(
        f"{shown(path)} takes images that were resized and normalised, and nothing beside it says how (an "
        f"{beside.name}, or the stage.json of a run). Say it: "
        "--view \"dict(type='Squash', size=224, mean=(.5, .5, .5), std=(.5, .5, .5))\""
    )


def _augmented(path: Path) -> bool:
    """Whether the embedder that an ONNX file was exported from has switched augmentation, which isn't in such files."""
    exports, beside = path.with_name("exports.json"), path.with_name(IN_A_RUN["safetensors"])
    if exports.is_file():
        try:
            return any(each["path"] == path.name and each["note"] for each in json.loads(exports.read_text()))
        except (ValueError, KeyError, TypeError) as error:
            raise GuieError(
                f"{shown(exports)} is damaged: {error}. Run the experiment again from its export"
            ) from error
    return beside.is_file() and guie_models.load(beside).augmentation is not None


def view_settings(text: str | None) -> Config | None:
    """The settings of a view as written on the command line. Raises ExperimentError if they make no sense."""
    if text is None:
        return None
    from guie_core.experiment import apply_override

    values: dict[str, Any] = {"view": None}
    problems: list[Problem] = []
    apply_override(values, f"view={text}", problems, ("view",))
    if problems or not isinstance(values["view"], Mapping):
        raise ExperimentError(problems or [Problem("--view", f"expects dict(type=...), got {text}.")])
    return dict(values["view"])


def _dimension(model: Model[Any]) -> int:
    """E, found by embedding a grey image, which also shows that the model runs."""
    gray = np.full((3, 64, 64), 128, np.uint8)
    try:
        return int(model.embed([model.prepare(gray)]).shape[1])
    except BadImage as error:
        raise GuieError(f"the model can't embed a grey image of 64 x 64: {error.reason}") from error


def _array(embeddings: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = embeddings.float().cpu().numpy()
    return array


@contextlib.contextmanager
def _memory(device: torch.device, batch_size: int) -> Iterator[None]:
    """Say what to lower where the memory is too small for so many images."""
    elsewhere = "--profile cpu uses the machine's" if device.type == "cuda" else "close what else takes memory here"
    way = f"add --batch-size {batch_size // 2}" if batch_size > 1 else elsewhere
    with within_memory(lambda: f"the memory is too small for {plural(batch_size, 'image')} at once; {way}"):
        yield


def _last_line(error: BaseException) -> str:
    """What an exception says at its end, where TorchScript and onnxruntime have the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _shape(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
