"""The stage that trains the backbone as well: FineTune."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from guie_core import Config, ExperimentError, GuieError, Problem, Slot
from guie_core.profiles import Profile
from guie_core.progress import bar
from guie_core.registry import build, load
from guie_core.wording import plural
from guie_datasets.images.decoding import Method
from guie_datasets.splits import TRAIN
from guie_models.backbones import Backbone
from guie_models.backbones.weights import fingerprint
from guie_train.device import autocast, device_of
from guie_train.feature_store import usable
from guie_train.fitting import Fit, Training, keep_if_of, sampler_of
from guie_train.fitting.images import Images, Seen
from guie_train.fitting.micro_batches import MicroBatches
from guie_train.heads import LOSS_PROVIDES, HeadWithLoss, TrainedHead, build_loss, head_inputs, sizes_of, with_sizes
from guie_train.planning.finetuning import FineTuned
from guie_train.planning.forecast import LIBRARIES, Features, Forecast, Outlook
from guie_train.planning.meta import on_meta
from guie_train.stage import Stage, Workspace
from guie_train.stages.features import ViewConfig
from guie_train.stages.head import TrainsHead
from guie_train.stages.selection import Selector, looked_at

SAVE_SECONDS = 600.0  # a state of ViT-H-14 has 7.6 GB: weights and two moments


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How the backbone is trained together with head and loss.

    Args:
        training: how. Its optimizer's rate is that of the backbone's last block; `lr_min` and `warmup_lr` are of the
            same scale, and other rates follow the schedule in proportion.
        blocks: the last so many blocks of the backbone are trained, see `Backbone.blocks`; None: all of it.
        head_lr: rate of the head; None: the optimizer's.
        centres_lr: rate of what the loss learns, its class centres; None: the optimizer's.
        layer_decay: the rate of a block is so many times that of the block after it (4th place: 0.5).
        start: from the "head" that was trained on frozen features, and its class centres where this loss has such;
            "afresh" with new ones, and no head is trained before: of the train view, one look at each image is enough.
        loss: another one than the recipe's.
        every: epochs between two evaluations; the selection is the recipe's else.
        compute: dtype of the backbone's arithmetic: "profile" leaves it to the hardware. Weights, their gradients'
            sums and the optimiser are float32 in any case, as are head and loss.
    """

    training: Training
    blocks: int | None = None
    head_lr: float | None = None
    centres_lr: float | None = None
    layer_decay: float = 1.0
    start: Literal["head", "afresh"] = "head"
    loss: Annotated[Config, Slot("losses", provides=LOSS_PROVIDES)] | None = None
    every: int = 1
    compute: Literal["float32", "profile"] = "profile"

    def __post_init__(self) -> None:
        for name, least in {"blocks": 1, "every": 1}.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} is {value}; it is {least} or more.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; it is above 0 and up to 1.")


class Tuned(HeadWithLoss):
    """A backbone, its head and their loss: what is trained together.

    The backbone computes in `compute` under autocast, with its weights in float32; head and loss are float32. Batch
    norms in the backbone keep their pretrained statistics, which would otherwise depend on how many images fit into the
    memory at once. Its state dictionary has what is trained: of the backbone, the open parameters.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, loss: nn.Module, compute: str = "float32") -> None:
        super().__init__(head, loss)
        self.backbone = backbone
        self.compute = compute
        self.register_state_dict_post_hook(_without_frozen)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_frozen_may_be_missing)  # type: ignore[no-untyped-call]

    def features(self, pixels: Tensor) -> Tensor:
        """Features [B, D] of images [B, 3, h, w], in float32."""
        # a context of its own each time: the casts of weights that autocast keeps for it belong to one graph
        with autocast(pixels.device, self.compute):
            features: Tensor = self.backbone(pixels)
        return features.float()

    def criterion(self, features: Tensor, sizes: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar, of features [B, D], size values [B, 3] and labels [B]."""
        return super().forward(with_sizes(self.head, features, sizes), labels)

    def forward(self, inputs: Seen, labels: Tensor) -> Tensor:  # type: ignore[override]
        return self.criterion(self.features(inputs.pixels), inputs.sizes, labels)

    def embed(self, inputs: Seen) -> Tensor:
        """Embeddings [B, E]."""
        embedding: Tensor = self.head(with_sizes(self.head, self.features(inputs.pixels), inputs.sizes))
        return embedding

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self


def _frozen(model: Tuned) -> set[str]:
    network = model.backbone.network
    every = network.state_dict(keep_vars=True)
    return {f"backbone.network.{name}" for name, value in every.items() if not value.requires_grad}


def _without_frozen(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    assert isinstance(module, Tuned)
    for name in _frozen(module):
        del state[prefix + name]


def _frozen_may_be_missing(module: nn.Module, keys: Any) -> None:
    assert isinstance(module, Tuned)
    frozen = _frozen(module)
    # behind the names of what the module is in, such as an average of it
    keys.missing_keys[:] = [
        key for key in keys.missing_keys if key[max(key.find("backbone.network."), 0) :] not in frozen
    ]


@dataclass(frozen=True)
class TunedHead(TrainedHead):
    """A head on disk, and what was trained of its backbone."""

    def tune(self, backbone: Backbone) -> Backbone:
        """`backbone` as the head was trained with it."""
        backbone.load_opened(self.part("backbone.network"))
        return backbone


@dataclass(frozen=True, kw_only=True)
class FineTune(TrainsHead):
    """Train backbone, head and margin loss together, on images.

    The frozen features of the recipe stay as they are; those of stages that come after this one are of the tuned
    backbone.

    Args:
        start: the head to begin with; None: a new one, which is random, or begins with what the frozen features tell
            where it can (`HeadWithLoss.start`).
        train_view, valid_view: how images are seen in training, anew each epoch, and in selection.
        blocks, head_lr, centres_lr, layer_decay: what is trained, and at which rates, see `FineTuning`.
        compute: dtype of the backbone's arithmetic.
    """

    slug: ClassVar[str] = "finetune"
    long: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("guie-datasets",)
    where: ClassVar[str] = "recipe.finetune.training"
    result: ClassVar[type[TrainedHead]] = TunedHead
    start: Stage[TrainedHead] | None
    backbone: Annotated[Config, Slot("backbones")]
    train_view: ViewConfig
    valid_view: ViewConfig
    blocks: int | None = None
    head_lr: float | None = None
    centres_lr: float | None = None
    layer_decay: float = 1.0
    decode: Method = "full"
    compute: str = "float32"

    def fingerprint(self) -> str:
        """What the weights are, as far as it shows without loading them."""
        return fingerprint(self.backbone.get("weights", "hub"))

    def check_loss(self, class_counts: NDArray[np.int64], workspace: Workspace) -> None:
        """Raise GuieError if backbone, blocks, head, optimizer or loss are refused."""
        on_meta(lambda: self._model(class_counts, weights="none"))

    def forecast(self, outlook: Outlook) -> Forecast:
        """Steps on micro-batches, counted on one of them."""
        images = outlook.images(self.manifest)
        train, selected = images.of(TRAIN), images.all.images - images.of(TRAIN).images
        counts = np.full(train.classes, max(1, train.images // train.classes))
        work = FineTuned(lambda: self._model(counts, weights="none"), self.training, self.compute)
        evaluations = -(-self.training.epochs // self.selection.every)
        found = work.forecast(outlook, train.images, selected, evaluations, self.selection.top_k)
        if self.start is not None or not callable(getattr(load("heads", self.head["type"]), "start", None)):
            return found
        features = outlook.given(self.train, Features)
        begun = LIBRARIES + train.images * features.views * (features.dimension + 3) * 4
        return replace(found, host=max(found.host or 0.0, begun))

    def _model(self, class_counts: NDArray[np.int64], **weights: Any) -> tuple[Tuned, list[dict[str, Any]]]:
        """What is trained, random but for the backbone, and the optimizer's groups."""
        backbone: Backbone = build("backbones", {**self.backbone, **weights}, where="recipe.backbone")
        try:
            blocks = self.open(backbone)
        except GuieError as error:
            raise ExperimentError([Problem("recipe.finetune.blocks", str(error))]) from None
        head = build("heads", self.head, where="recipe.head", in_features=backbone.features)
        loss = build_loss(self.loss, head.out_features, class_counts, "recipe.finetune.loss")
        return Tuned(backbone, head, loss, self.compute), self.groups(blocks, head, loss)

    def open(self, backbone: Backbone) -> list[list[nn.Parameter]]:
        """Opens the backbone's last blocks to training; their parameters by block.

        Raises UsageError: it has fewer blocks.
        """
        blocks = backbone.blocks()
        chosen = len(blocks) if self.blocks is None else self.blocks
        backbone.unfreeze(chosen)
        parameters = dict(backbone.network.named_parameters())
        return [[parameters[name] for name in block] for block in blocks[len(blocks) - chosen :]]

    def groups(self, blocks: list[list[nn.Parameter]], head: nn.Module, loss: nn.Module) -> list[dict[str, Any]]:
        """Groups for the optimizer, each with its rate in proportion to the optimizer's own."""
        probe = build("optimizers", self.training.optimizer, params=[nn.Parameter(torch.zeros(1))])
        rate = probe.param_groups[0]["lr"]
        parts: list[tuple[Any, float]] = [
            (block, self.layer_decay**depth) for depth, block in enumerate(reversed(blocks))
        ]
        for module, own in ((head, self.head_lr), (loss, self.centres_lr)):
            parts.append((list(module.parameters()), 1.0 if own is None else own / rate))
        return [{"params": params, "lr_scale": scale} for params, scale in parts if params]

    def run(self, folder: Path, workspace: Workspace) -> None:
        """Write the chosen weights, checkpoints, the curves, and the state from which an interrupted run goes on."""
        manifest, kept = usable(workspace.get(self.manifest), workspace.get(self.train), workspace.get(self.valid))
        pairs = self.pairs(workspace, kept)
        keep_if_of(looked_at(manifest, pairs), folder, self.name)
        profile, training = workspace.profile, self.training
        device = device_of(profile)
        rows = np.flatnonzero(manifest.column("split") == TRAIN)
        classes, labels, counts = np.unique(manifest.column("label")[rows], return_inverse=True, return_counts=True)
        refs, sampler = manifest.images(), sampler_of(training, manifest.select(rows), labels, self.seed)

        torch.manual_seed(self.seed)
        model, groups = self._model(counts)
        if not (folder / "state.pt").exists():  # which has either
            if self.start is not None:
                begin_with(model, workspace.get(self.start))
            elif model.starts:
                frozen = workspace.get(self.train)
                features = head_inputs(model.head, frozen, manifest, rows, frozen.views)
                model.start(features, torch.from_numpy(labels).repeat(frozen.views))
                del features
        backbone = model.backbone
        backbone.set_grad_checkpointing(profile.checkpointing)
        model.to(device).to(memory_format=torch.channels_last)

        def images(rows: NDArray[np.int64], labels: NDArray[Any], view: Config) -> Images:
            pixels = {"size": backbone.image_size, "mean": backbone.mean, "std": backbone.std}
            seen = build("views", view, where="view", **pixels)
            return Images(
                [refs[row] for row in rows],
                torch.from_numpy(labels),
                sizes_of(manifest, rows, backbone.image_size),
                seen,
                device,
                target=getattr(seen, "size", backbone.image_size),
                decode=self.decode,
                workers=profile.workers,
                seed=self.seed,
            )

        size = profile.micro_batch("finetune", training.batch_size)
        fit = Fit(
            model,
            images(rows, labels, self.train_view),
            training,
            seed=self.seed,
            folder=folder,
            name=self.name,
            on_epoch=partial(workspace.on_epoch, self.name),
            sampler=sampler,
            parameters=groups,
            backward=MicroBatches(size),
            float16=self.compute == "float16",
            example=lambda row: str(refs[rows[row]]),
            save_seconds=SAVE_SECONDS,
        )

        def selected(rows: NDArray[np.int64]) -> Images:
            return images(rows, np.zeros(len(rows), np.int64), self.valid_view)

        def embed(examples: Images) -> Tensor:
            network: Any = fit.evaluated
            parts = torch.arange(len(examples)).split(size)  # of so many it is known that they fit beside the moments
            found = []
            with bar(len(examples), f"{self.name}, selection") as progress:
                for seen, labels in examples.batches(0, parts):
                    found.append(network.embed(seen))
                    progress.advance(len(labels))
            return torch.cat(found)

        # a checkpoint may have gigabytes: the chosen one is enough
        selector = Selector(
            self.selection,
            fit,
            manifest,
            classes,
            pairs,
            fit.evaluated.loss,
            selected,
            embed,
            keep_validated=False,
        )
        curves = fit.run(workspace.stop, selector, self.selection.enough, self.selection.every)
        selector.finish(curves)
        self.write_curves(folder, backbone.features, curves)
        (folder / "state.pt").unlink(missing_ok=True)  # three times the weights, of which nothing is needed any more

    def lower(self, profile: Profile) -> str:
        """Micro-batches and checkpointing, which change no result; what does, where these are at their least."""
        size = profile.micro_batch("finetune", self.training.batch_size)
        ways = [f"--set profile.batch.finetune={size // 2}"] if size > 1 else []
        ways += [] if profile.checkpointing else ["--set profile.checkpointing=True"]
        if ways:
            way = f"Either of these changes no result: {' or '.join(ways)}"
        else:
            way = "Train fewer blocks with --set recipe.finetune.blocks=N, or choose a smaller backbone"
        return f"It trains on {plural(size, 'image')} at once. {way}"


def begin_with(model: Tuned, trained: TrainedHead) -> None:
    """Gives `model` the weights of a head that was trained before, and its class centres where the loss has such."""
    model.head.load_state_dict(trained.part("head"))
    before = trained.part("loss")
    with torch.no_grad():
        for name, value in model.loss.named_parameters():
            if name in before and before[name].shape == value.shape:
                value.copy_(before[name])
