"""FineTune: what is trained, at which rates, in which numbers, and that neither profile nor interruption matters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from guie_core import ExperimentError, GuieError, Interrupted, build
from guie_core.interrupt import Stop
from guie_core.profiles import Profile, profile
from guie_datasets import Manifest
from guie_models import size_values
from guie_models.heads import Whitened
from guie_train.feature_store import FeatureStore
from guie_train.fitting import LossScale, Training
from guie_train.fitting.images import Images
from guie_train.fitting.micro_batches import MicroBatches
from guie_train.heads import TrainedHead
from guie_train.planning.forecast import LIBRARIES, Features, Forecast, Outlook
from guie_train.stage import Stage, Workspace
from guie_train.stages.finetune import FineTune, FineTuning, Tuned, begin_with
from guie_train.stages.selection import Selection

SIDE = 32
VIT = {"type": "timm/test_vit", "weights": "none", "image_size": SIDE}
SGD = {"optimizer": {"type": "SGD", "lr": 1e-3}, "lr_min": 1e-3}  # Adam goes by the sign of what is only rounding
CPU = replace(profile("cpu"), workers=0, batch={"finetune": 5})


@dataclass(frozen=True, kw_only=True)
class Pictures(Stage[Manifest]):
    """Stripes, whose direction is the class: 5 classes of 6 images to train on, 3 of 4 to select by."""

    slug: ClassVar[str] = "pictures"
    root: str

    def run(self, folder: Path, workspace: Workspace) -> None:
        generator = np.random.default_rng(0)
        rows = [(label, "train") for label in range(5) for _ in range(6)]
        rows += [(label, "select") for label in range(5, 8) for _ in range(4)]
        for number, (label, _) in enumerate(rows):
            y, x = np.mgrid[:40, :44] + generator.integers(0, 20)
            angle = label * np.pi / 8
            wave = 127 + 100 * np.sin((x * np.cos(angle) + y * np.sin(angle)) / 2)
            pixels = wave[..., None] + generator.normal(0, 20, (40, 44, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(Path(self.root) / f"{number}.png")
        Manifest.from_columns(
            {
                "path": [str(Path(self.root) / f"{number}.png") for number in range(len(rows))],
                "label": [label for label, _ in rows],
                "split": [split for _, split in rows],
                "width": [44] * len(rows),
                "height": [40] * len(rows),
                "hash": [f"{number:032x}" for number in range(len(rows))],
            }
        ).write(folder / "manifest.parquet")

    def load(self, folder: Path) -> Manifest:
        return Manifest.read(folder / "manifest.parquet")


@dataclass(frozen=True, kw_only=True)
class Frozen(Stage[FeatureStore]):
    """A store of which only the images that cannot be decoded matter here."""

    slug: ClassVar[str] = "frozen"

    def run(self, folder: Path, workspace: Workspace) -> None:
        FeatureStore(folder, {"dimension": 64, "dtype": "float32", "image_size": SIDE})

    def load(self, folder: Path) -> FeatureStore:
        return FeatureStore(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("pictures"))


def stage(pictures: str, *, backbone: Any = VIT, compute: str = "float32", **settings: Any) -> FineTune:
    training: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 12,
        "optimizer": {"type": "AdamW", "lr": 1e-4},
        "lr_min": 1e-4,
        "warmup_epochs": 0,
        **settings.pop("training", {}),
    }
    return FineTune(
        name="finetune",
        manifest=Pictures(name="pictures", root=pictures),
        train=Frozen(name="frozen"),
        valid=Frozen(name="frozen"),
        start=settings.pop("start", None),
        backbone=backbone,
        train_view={"type": "RandomSquareCrop", "area": (0.5, 1.0)},
        valid_view={"type": "Squash"},
        head={"type": "Linear", "out_features": 8, "dropout": 0.2, "size_features": 3},
        loss=settings.pop("loss", {"type": "ArcFace", "margin": 0.3}),
        training=Training(**training),
        selection=Selection(protocol={"type": "LeaveOneOut", "split": "select"}, every=1, keep="last"),
        compute=compute,
        **settings,
    )


def tune(folder: Path, fine_tune: FineTune, on: Profile = CPU, stop: Stop | None = None) -> dict[str, Tensor]:
    workspace = Workspace(folder / "store", on, Stop() if stop is None else stop)
    return load_file(workspace.get(fine_tune).folder / "chosen.safetensors")


def curves(folder: Path) -> list[dict[str, float]]:
    (path,) = (folder / "store" / "finetune").glob("*/curves.json")
    found: list[dict[str, float]] = json.loads(path.read_text())["curves"]
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=tolerance, msg=name)


def names(tensors: dict[str, Tensor], start: str = "backbone.network.") -> set[str]:
    return {name.removeprefix(start) for name in tensors if name.startswith(start)}


def test_interruptions_change_nothing(tmp_path: Path, pictures: str, stop_after: Callable[[int], Stop]) -> None:
    """Random crops, dropout, and micro-batches that don't divide the batch; stopped at every step."""
    whole = tune(tmp_path / "whole", stage(pictures))
    parts, steps = tmp_path / "parts", []
    for _ in range(4):
        with pytest.raises(Interrupted, match="finetune: saved") as stopped:
            # each of the stages before is asked once, where it isn't there yet
            tune(parts, stage(pictures), stop=stop_after(1 if steps else 3))
        steps.append(str(stopped.value).partition("saved at ")[2])
    assert steps == ["epoch 0, step 1", "epoch 0, step 2", "epoch 1, step 1", "epoch 1, step 2"]
    torch.manual_seed(99)
    same(whole, tune(parts, stage(pictures)))
    assert curves(tmp_path / "whole") == curves(parts)


def test_the_profile_changes_no_result(tmp_path: Path, pictures: str) -> None:
    """However many images fit into the memory, activations are kept or not, and threads read."""
    fine_tune = stage(pictures, training=SGD)
    whole = tune(tmp_path / "whole", fine_tune, replace(CPU, batch={"finetune": 12}))
    parts = tune(tmp_path / "parts", fine_tune, replace(CPU, batch={"finetune": 5}, checkpointing=True, workers=3))
    same(whole, parts, tolerance=2e-6)
    for one, other in zip(curves(tmp_path / "whole"), curves(tmp_path / "parts"), strict=True):
        assert other == pytest.approx(one, rel=1e-4)


def test_only_the_chosen_blocks_are_trained_and_kept(tmp_path: Path, pictures: str, monkeypatch: Any) -> None:
    from guie_train.fitting import Fit

    fits: list[Fit] = []
    finish = Fit.run

    def noted(self: Fit, *arguments: Any, **named: Any) -> Any:
        fits.append(self)
        return finish(self, *arguments, **named)

    monkeypatch.setattr(Fit, "run", noted)
    tensors = tune(tmp_path, stage(pictures, blocks=2))
    backbone = build("backbones", VIT)
    opened = {name for block in backbone.blocks()[-2:] for name in block}
    assert names(tensors) == opened
    before = backbone.network.state_dict()
    assert all(not torch.equal(tensors[f"backbone.network.{name}"], before[name]) for name in opened)
    model: Any = fits[0].model
    with_state = {id(parameter) for parameter in fits[0].optimizer.state}
    for name, parameter in model.backbone.network.named_parameters():
        assert (id(parameter) in with_state) == (name in opened), name
        assert (parameter.grad is not None) == (name in opened), name
        assert torch.equal(parameter, before[name]) == (name not in opened), name


def test_each_part_has_its_own_rate() -> None:
    """Layer-wise decay from the last block down (4th place), head and centres apart (2nd place)."""
    optimizer = {"type": "SAM", "base": {"type": "AdamW", "lr": 1e-5}}
    fine_tune = stage(
        "",
        training={"optimizer": optimizer, "lr_min": 0.0},
        blocks=3,
        head_lr=3e-4,
        centres_lr=1e-2,
        layer_decay=0.5,
    )
    backbone = build("backbones", VIT)
    head, loss = nn.Linear(64, 8), build("losses", {"type": "ArcFace"}, embedding_size=8, classes=4)
    groups = fine_tune.groups(fine_tune.open(backbone), head, loss)
    parameters = dict(backbone.network.named_parameters())
    expected = {id(parameters[name]): 0.5**depth for depth in range(3) for name in backbone.blocks()[-1 - depth]}
    expected |= {id(parameter): 30.0 for parameter in head.parameters()} | {id(loss.centres): 1000.0}
    found = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert found == pytest.approx(expected)


def test_weights_are_float32_under_mixed_precision(tmp_path: Path, pictures: str) -> None:
    """A rate of 1e-7 moves them, where it wouldn't move weights of 16 bits."""
    slow = {"optimizer": {"type": "Adam", "lr": 1e-7}, "lr_min": 1e-7, "epochs": 1}
    tensors = tune(tmp_path, stage(pictures, training=slow, compute="bfloat16"))
    before = build("backbones", VIT).network.state_dict()
    moved = still = 0
    for name in names(tensors):
        after = tensors[f"backbone.network.{name}"]
        assert after.dtype == torch.float32
        assert (after - before[name]).abs().max() < 4e-7, name  # two steps, and rounding
        large = before[name].abs() > 0.01
        moved += int((after != before[name])[large].sum())
        still += int((after.bfloat16() == before[name].bfloat16())[large].sum())
    total = sum(int((before[name].abs() > 0.01).sum()) for name in names(tensors))
    assert moved > 0.9 * total
    assert still > 0.9 * total


def test_the_backbone_computes_in_the_profiles_dtype() -> None:
    model = Tuned(build("backbones", VIT), nn.Linear(64, 8), nn.Identity(), "bfloat16")
    seen: list[torch.dtype] = []
    model.backbone.network.blocks[0].mlp.fc1.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    features = model.features(torch.randn(2, 3, SIDE, SIDE))
    assert seen == [torch.bfloat16]
    assert features.dtype == torch.float32


def test_float16_gives_the_gradients_of_float32(
    tmp_path: Path, pictures: str, stop_after: Callable[[int], Stop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossScale, "first", 256.0)  # with which none overflows here
    plain = tune(tmp_path / "plain", stage(pictures, training=SGD))
    half = tune(tmp_path / "half", stage(pictures, training=SGD, compute="float16"))
    assert not any("skipped steps" in curve for curve in curves(tmp_path / "half"))
    before = build("backbones", VIT).network.state_dict()

    def moved(tensors: dict[str, Tensor]) -> Tensor:
        return torch.cat([(tensors[f"backbone.network.{name}"] - before[name]).flatten() for name in before])

    assert nn.functional.cosine_similarity(moved(half), moved(plain), dim=0) > 0.999
    with pytest.raises(Interrupted):
        tune(tmp_path / "parts", stage(pictures, training=SGD, compute="float16"), stop=stop_after(4))
    same(half, tune(tmp_path / "parts", stage(pictures, training=SGD, compute="float16")))


def test_steps_that_overflow_in_float16_are_left_out(
    tmp_path: Path, pictures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossScale, "first", 2.0**40)  # halved in each of four steps, it still overflows
    with pytest.raises(GuieError, match=r"none of the 2 steps of epoch 2 could be made, .*come down to 6\.87e"):
        tune(tmp_path, stage(pictures, compute="float16"))
    assert not list((tmp_path / "store" / "finetune").glob("*/curves.json"))


def test_batch_statistics_of_the_backbone_stay(tmp_path: Path, pictures: str) -> None:
    """They would depend on how many images fit into the memory at once; weights of batch norms are trained."""
    resnet = {"type": "timm/test_resnet", "weights": "none", "image_size": SIDE}
    fine_tune = stage(pictures, backbone=resnet, training=SGD)
    whole = tune(tmp_path / "whole", fine_tune, replace(CPU, batch={"finetune": 12}))
    parts = tune(tmp_path / "parts", fine_tune, replace(CPU, batch={"finetune": 7}))
    same(whole, parts, tolerance=2e-6)
    network = build("backbones", resnet).network
    assert names(whole) == set(dict(network.named_parameters()))
    assert not torch.equal(whole["backbone.network.bn1.weight"], network.bn1.weight)


def test_an_average_of_the_weights_is_chosen_and_resumed(
    tmp_path: Path, pictures: str, stop_after: Callable[[int], Stop]
) -> None:
    settings = {"blocks": 1, "training": {"ema_decay": 0.5}}
    whole = tune(tmp_path / "whole", stage(pictures, **settings))
    with pytest.raises(Interrupted):
        tune(tmp_path / "parts", stage(pictures, **settings), stop=stop_after(4))
    same(whole, tune(tmp_path / "parts", stage(pictures, **settings)))
    plain = tune(tmp_path / "plain", stage(pictures, blocks=1))
    assert whole.keys() == plain.keys()
    assert not torch.equal(whole["head.linear.weight"], plain["head.linear.weight"])


@dataclass(frozen=True, kw_only=True)
class Trained(Stage[TrainedHead]):
    """A head that was trained before, with centres of this many classes."""

    slug: ClassVar[str] = "trained"
    classes: int = 5

    def run(self, folder: Path, workspace: Workspace) -> None:
        from safetensors.torch import save_file

        tensors = {
            "head.linear.weight": torch.full((8, 67), 0.25),
            "head.linear.bias": torch.full((8,), 2.0),
            "loss.centres": torch.arange(self.classes * 8).reshape(self.classes, 8).float(),
        }
        save_file(tensors, folder / "chosen.safetensors")

    def load(self, folder: Path) -> TrainedHead:
        return TrainedHead(folder, {"type": "Linear", "out_features": 8, "size_features": 3}, 64, 1, [])


@pytest.mark.parametrize(("classes", "taken"), [(5, True), (6, False)])
def test_it_goes_on_from_a_trained_head_and_its_centres(
    classes: int, taken: bool, tmp_path: Path, pictures: str
) -> None:
    slow = {"optimizer": {"type": "AdamW", "lr": 1e-9}, "lr_min": 1e-9}
    start = Trained(name="head", classes=classes)
    tensors = tune(tmp_path, stage(pictures, start=start, training=slow))
    torch.testing.assert_close(tensors["head.linear.weight"], torch.full((8, 67), 0.25))
    before = torch.arange(40).reshape(5, 8).float()
    assert torch.allclose(tensors["loss.centres"], before, rtol=0, atol=1e-6) == taken


@dataclass(frozen=True, kw_only=True)
class Computed(Frozen):
    """Features of the images, by the backbone as it is before it is tuned."""

    slug: ClassVar[str] = "computed"
    manifest: Stage[Manifest]

    def run(self, folder: Path, workspace: Workspace) -> None:
        hashes = workspace.get(self.manifest).column("hash")
        store = FeatureStore(folder, {"dimension": 64, "dtype": "float32", "image_size": SIDE})
        store.append(hashes, np.random.default_rng(0).normal(size=(len(hashes), 64)))


def test_without_a_trained_head_one_that_can_begins_with_what_training_features_tell(
    tmp_path: Path, pictures: str, stop_after: Callable[[int], Stop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a head is trained alone; once, and centres suit it."""
    begun: list[int] = []
    begin = Whitened.start

    def noted(self: Whitened, x: Tensor, labels: Tensor) -> None:
        begun.append(len(x))
        begin(self, x, labels)

    slow = {"optimizer": {"type": "AdamW", "lr": 1e-9}, "lr_min": 1e-9, "keep_every": 1}
    plain = stage(pictures, training=slow)
    features = Computed(name="computed", manifest=plain.manifest)
    afresh = replace(plain, train=features, head={"type": "Whitened", "out_features": 8, "size_features": 3})
    monkeypatch.setattr(Whitened, "start", noted)
    with pytest.raises(Interrupted, match="finetune: saved"):
        tune(tmp_path, afresh, stop=stop_after(4))
    tensors = tune(tmp_path, afresh)
    assert begun == [30]

    workspace = Workspace(tmp_path / "store", CPU, Stop())
    manifest, store = workspace.get(afresh.manifest), workspace.get(features)
    rows = np.flatnonzero(manifest.column("split") == "train")
    x = torch.from_numpy(store.read(manifest.column("hash")[rows]))
    x = torch.cat([x, size_values(torch.full((30,), 40.0), torch.full((30,), 44.0), SIDE)], 1)
    labels = torch.from_numpy(manifest.column("label")[rows])
    expected = Whitened(64, 8, size_features=3)
    begin(expected, x, labels)
    torch.testing.assert_close(tensors["head.linear.weight"], expected.linear.weight.detach(), atol=1e-6, rtol=0)
    cosines = torch.cosine_similarity(expected(x)[:, None], tensors["loss.centres"][None], dim=2)
    for label in range(5):
        assert cosines[labels == label].mean(0).argmax() == label


def test_it_learns(tmp_path: Path, pictures: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Stripes by their direction, all of the network from random weights."""
    quick = {"optimizer": {"type": "AdamW", "lr": 2e-3}, "epochs": 10, "warmup_epochs": 1, "lr_min": 1e-4}
    tune(tmp_path, stage(pictures, training=quick))
    losses = [curve["loss"] for curve in curves(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]
    # in each epoch it also looks at the images by which it chooses, which shows
    assert capsys.readouterr().err.count("finetune, selection: 12/12 images, 100 %") == 10


def test_features_of_the_tuned_backbone_are_those_of_what_was_trained(tmp_path: Path, pictures: str) -> None:
    workspace = Workspace(tmp_path / "store", CPU, Stop())
    tuned = workspace.get(stage(pictures, blocks=2))
    images = torch.randn(3, 3, SIDE, SIDE)
    frozen = build("backbones", VIT)
    with torch.inference_mode():
        before = frozen(images)
        after = tuned.tune(build("backbones", VIT))(images)
    network = build("backbones", VIT).network
    state = tuned.part("backbone.network")
    network.load_state_dict(state, strict=False)
    with torch.inference_mode():
        torch.testing.assert_close(after, network(images))
    assert (after - before).abs().max() > 1e-3
    assert tuned.build()(torch.cat([after, torch.rand(3, 3)], 1)).shape == (3, 8)


def test_an_image_that_was_spoilt_since_is_named(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    fine_tune = stage(str(tmp_path / "pictures"))
    workspace = Workspace(tmp_path / "store", CPU, Stop())
    workspace.get(fine_tune.manifest)
    (tmp_path / "pictures" / "7.png").write_bytes(b"no image")
    with pytest.raises(GuieError, match=r"7\.png.*could be decoded when features were made"):
        workspace.get(fine_tune)


@pytest.mark.parametrize(
    ("on", "ways"),
    [
        (CPU, "--set profile.batch.finetune=2 or --set profile.checkpointing=True"),
        (replace(CPU, batch={"finetune": 1}), "no result: --set profile.checkpointing=True"),
        (replace(CPU, batch={"finetune": 1}, checkpointing=True), "recipe.finetune.blocks=N"),
    ],
)
def test_out_of_memory_says_what_to_lower(
    on: Profile, ways: str, tmp_path: Path, pictures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(MicroBatches, "__call__", full)
    with pytest.raises(GuieError) as raised:
        tune(tmp_path, stage(pictures), on)
    text = str(raised.value)
    assert re.search(rf": the memory is too small\. It trains on {on.batch['finetune']} images? at once\. ", text)
    assert text.endswith("\ntorch: CUDA out of memory. Tried to allocate 20 GiB")
    assert ways in text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"blocks": 99}, "recipe.finetune.blocks: timm/test_vit: 99 of its blocks can't be trained"),
        ({"training": {"batch_size": 31}}, "recipe.finetune.training: 30 training images do not fill one batch of 31"),
        ({"training": {"epoch_parts": 3}}, "do not fill one batch of 12 in each of 3 parts"),
        ({"loss": {"type": "ArcFace", "margin": 9.0}}, "margin is 9.0"),
    ],
)
def test_what_would_stop_it_is_told_before_hours_of_features(
    settings: dict[str, Any], text: str, tmp_path: Path, pictures: str
) -> None:
    workspace = Workspace(tmp_path / "store", CPU, Stop())
    with pytest.raises((GuieError, ExperimentError)) as raised:
        stage(pictures, **settings).check(workspace)
    assert text in str(raised.value)
    stage(pictures).check(workspace)


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"blocks": 0}, "blocks is 0"), ({"every": 0}, "every is 0"), ({"layer_decay": 1.5}, "layer_decay is 1.5")],
)
def test_settings_that_cannot_be(settings: dict[str, Any], text: str) -> None:
    training = Training(epochs=1, batch_size=1, optimizer={"type": "AdamW"})
    with pytest.raises(ValueError, match=text):
        FineTuning(training=training, **settings)


def test_images_are_seen_anew_in_each_epoch_and_alike_in_any_order(tmp_path: Path, pictures: str) -> None:
    workspace = Workspace(tmp_path / "store", CPU, Stop())
    refs = workspace.get(Pictures(name="pictures", root=pictures)).images()
    view = build("views", {"type": "RandomSquareCrop", "area": (0.3, 1.0)}, size=8, mean=(0,) * 3, std=(1,) * 3)
    sizes, labels = torch.rand(len(refs), 3), torch.arange(len(refs))

    def seen(epoch: int, order: list[list[int]], workers: int = 0, seed: int = 3) -> dict[int, Tensor]:
        examples = Images(refs, labels, sizes, view, torch.device("cpu"), target=8, workers=workers, seed=seed)
        found = {}
        for (pixels, size), label in examples.batches(epoch, map(torch.tensor, order)):
            for image, its_size, number in zip(pixels, size, label.tolist(), strict=True):
                assert torch.equal(its_size, sizes[number])
                found[number] = image
        return found

    whole = seen(4, [[0, 1, 2], [3, 4, 5]])
    for other in (seen(4, [[5, 3], [4, 0]]), seen(4, [[2, 1, 0]], workers=3)):
        assert all(torch.equal(image, whole[number]) for number, image in other.items())
    for other in (seen(5, [[0, 1, 2]]), seen(4, [[0, 1, 2]], seed=8)):
        assert not any(torch.equal(image, whole[number]) for number, image in other.items())


def test_begin_with_takes_nothing_that_is_shaped_otherwise(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, CPU, Stop())
    trained = workspace.get(Trained(name="head"))
    head = build("heads", {"type": "Linear", "out_features": 8, "size_features": 3}, in_features=64)
    loss = build("losses", {"type": "ArcFace", "sub_centres": 2}, embedding_size=8, classes=5)
    before = loss.centres.detach().clone()
    begin_with(Tuned(build("backbones", VIT), head, loss), trained)
    assert torch.equal(loss.centres, before)
    assert torch.equal(head.linear.bias, torch.full((8,), 2.0))


def test_what_it_takes_is_told_ahead(tmp_path: Path, pictures: str) -> None:
    """Numbers of the real network; bytes of float32 weights, gradients and Adam's two moments, and of activations."""
    workspace = Workspace(tmp_path / "store", CPU, Stop())
    manifest = workspace.get(Pictures(name="pictures", root=pictures))
    assert len(manifest) == 42
    forecasts = {}
    for size in (1, 12):
        on = replace(CPU, batch={"finetune": size})
        outlook = Outlook(Workspace(tmp_path / "store", on, Stop()), ready=lambda stage: stage.slug == "pictures")
        forecasts[size] = stage(pictures, blocks=2).forecast(outlook)
    one = forecasts[1]
    tensors = tune(tmp_path, stage(pictures, blocks=2))
    trained = sum(value.numel() for value in tensors.values())
    total = sum(parameter.numel() for parameter in build("backbones", VIT).parameters()) + 67 * 8 + 8 + 5 * 8
    assert (one.parameters, one.trained) == (total, trained)
    assert one.device is not None
    others = 11 * 3 * 32**2 * 4  # bytes of the batch's images that wait for their turn
    assert 1.0 < one.device / (4 * total + 12 * trained + others) < 1.1
    assert forecasts[12].device > one.device
    (chosen,) = (tmp_path / "store" / "finetune").glob("*/chosen.safetensors")
    # the chosen, the state, which has two moments more, and the next state, before it takes that one's place
    assert one.disk == pytest.approx(7 * chosen.stat().st_size, rel=0.02)
    more = replace(stage(pictures, blocks=2), selection=Selection(protocol={"type": "LeaveOneOut"}, every=1, top_k=5))
    assert more.forecast(outlook).disk == pytest.approx(9 * chosen.stat().st_size, rel=0.02)  # 2 epochs: 2 are kept
    assert one.does.startswith("2 epochs of 2 steps of 12 images of 32 px, 1 at once, in float32")


@dataclass(frozen=True, kw_only=True)
class Planned(Frozen):
    """Features that nobody has computed, of a million numbers each."""

    def forecast(self, outlook: Outlook) -> Forecast:
        return Forecast(gives=Features(1_000_000, views=2))


def test_a_plan_knows_that_a_head_begins_with_all_frozen_features(tmp_path: Path, pictures: str) -> None:
    outlook = Outlook(Workspace(tmp_path / "store", CPU, Stop()), ready=lambda stage: stage.slug == "pictures")
    outlook.workspace.get(Pictures(name="pictures", root=pictures))
    plain = replace(stage(pictures), train=Planned(name="features"))
    able = replace(plain, head={"type": "Whitened", "out_features": 8})
    hosts = {
        name: made.forecast(outlook).host
        for name, made in (("plain", plain), ("afresh", able), ("begun", replace(able, start=Trained(name="head"))))
    }
    assert hosts["plain"] == pytest.approx(hosts["begun"], rel=1e-2)
    assert hosts["afresh"] == LIBRARIES + 30 * 2 * 1_000_003 * 4


def test_a_plan_that_does_not_fit_proposes_what_does(tmp_path: Path, pictures: str) -> None:
    on = replace(CPU, batch={"finetune": 2})
    outlook = Outlook(Workspace(tmp_path / "store", on, Stop()), ready=lambda stage: stage.slug == "pictures")
    outlook.workspace.get(Pictures(name="pictures", root=pictures))
    forecast = stage(pictures, backbone={**VIT, "image_size": 320}, blocks=3).forecast(outlook)
    assert forecast.device is not None
    ways = list(forecast.lighter(forecast.device - 1))
    assert ways == ["--set profile.checkpointing=True", "--set profile.batch.finetune=1"]


def test_a_loss_that_is_not_finite_names_batch_epoch_and_images(tmp_path: Path, pictures: str) -> None:
    wild = {"optimizer": {"type": "SGD", "lr": 1e30}, "lr_min": 1e30}
    with pytest.raises(GuieError) as raised:
        tune(tmp_path, stage(pictures, training=wild))
    text = str(raised.value)
    assert "finetune: the loss is not finite in epoch 1, batch 2 of 2" in text
    assert ".png" in text
    assert "Lower the learning rate" in text
