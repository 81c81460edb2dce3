"""Plans: what stages say of what they take, what isn't there, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image
from torch import nn

from guie_core import GuieError
from guie_core.interrupt import Stop
from guie_core.profiles import Profile, profile
from guie_datasets import Extent, ImageRef
from guie_datasets.extent import united
from guie_models.losses import ArcFace
from guie_train.fitting import Training
from guie_train.heads import HeadWithLoss
from guie_train.planning import plan as planning
from guie_train.planning import speeds
from guie_train.planning.backbones import Frozen, powers_below
from guie_train.planning.forecast import Features as Stored
from guie_train.planning.forecast import Forecast, Images, Missing, Outlook
from guie_train.planning.known import NotKnown
from guie_train.planning.meta import on_meta, trace
from guie_train.planning.page import page
from guie_train.planning.plan import Plan, Step, make_plan, obstacles
from guie_train.planning.speeds import PEAKS, decoding, published, speed_of, with_decoding
from guie_train.planning.training import forecast_training
from guie_train.runner import _check_room
from guie_train.stage import Stage, Workspace
from guie_train.stages.data import Prepare, Split
from guie_train.stages.evaluate import Evaluate
from guie_train.stages.features import Features


@dataclass(frozen=True, kw_only=True)
class Silent(Stage[str]):
    """A stage that says nothing of what it takes."""

    slug: ClassVar[str] = "silent"
    value: int = 0
    source: Stage[str] | None = None

    def run(self, folder: Path, workspace: Workspace) -> None:
        (folder / "value").write_text("x" * self.value)

    def load(self, folder: Path) -> str:
        return (folder / "value").read_text()


@dataclass(frozen=True, kw_only=True)
class Large(Silent):
    """One whose memory is 100 MB for each image that it takes at once."""

    long: ClassVar[bool] = True
    batch: int = 64

    def forecast(self, outlook: Outlook) -> Forecast:
        def lighter(memory: float):
            yield from (f"--batch {batch}" for batch in (32, 16, 8) if batch * 1e8 <= memory)

        return Forecast(
            does="much", device=self.batch * 1e8, host=1e9, disk=2e9, lighter=lighter, seconds=7, basis="so"
        )


@pytest.fixture
def workspace(tmp_path: Path) -> Callable[[str | Profile], Workspace]:
    return lambda name: Workspace(tmp_path / "store", name if isinstance(name, Profile) else profile(name), Stop())


def test_a_stage_that_does_not_say_is_not_known_and_the_plan_goes_on(workspace, tmp_path: Path) -> None:
    silent = Silent(name="silent")
    stages = [silent, Large(name="large", source=silent)]
    plan = make_plan(stages, [], workspace("rtx3090-24g"))
    assert [step.state for step in plan.steps] == ["to do", "to do"]
    assert plan.steps[0].forecast.basis == "it doesn't say"
    assert plan.device(plan.steps[0]) is None
    assert plan.device(plan.steps[1]) == 6.4e9
    told = page(plan, tmp_path).splitlines()
    assert told[1].split() == ["1/2", "silent", "to", "do", "-", "-", "-", "it", "doesn't", "say"]
    assert told[2].split() == ["2/2", "large", "to", "do", "2.0", "GB", "6.4", "GB", "1.0", "GB", "about", "7.0", "s"]
    assert list(tmp_path.iterdir()) == []  # nothing is written


def test_what_is_there_is_told_with_its_size_and_asks_for_nothing(workspace, tmp_path: Path) -> None:
    silent, space = Silent(name="silent", value=5000), workspace("cpu")
    after = Large(name="large", source=silent)
    space.get(silent)
    plan = make_plan([silent, after], [], workspace("cpu"))
    assert [step.state for step in plan.steps] == ["done before", "to do"]
    assert plan.steps[0].disk == sum(path.stat().st_size for path in space.folder(silent).iterdir()) > 5000
    assert make_plan([silent, after], [silent], workspace("cpu")).steps[0].state == "again"
    space.get(after)
    done = make_plan([silent, after], [], workspace("cpu"))
    assert "All is done: the same command without --dry-run reuses it." in page(done, tmp_path)
    elsewhere = replace(done, profile=profile("rtx3090-24g"))  # which starts with looking for it
    assert "without --dry-run reuses it on a machine with a GPU." in page(elsewhere, tmp_path)


def test_what_an_unfinished_run_has_left_is_told(workspace) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Broken(Silent):
        slug: ClassVar[str] = "broken"

        def run(self, folder: Path, workspace: Workspace) -> None:
            for number in range(self.value):
                (folder / str(number)).touch()
            raise GuieError("out of luck")

    for value, state in {0: "to do", 1: "begun"}.items():  # where nothing was written, nothing is left
        stages = [Broken(name="broken", value=value), Silent(name="silent")]
        with pytest.raises(GuieError, match="out of luck"):
            workspace("cpu").get(stages[0])
        assert [step.state for step in make_plan(stages, [], workspace("cpu")).steps] == [state, "to do"]


def test_a_gpu_that_is_too_small_is_told_what_fits(workspace) -> None:
    plan = make_plan([Large(name="one"), Large(name="two")], [], workspace(profile({"type": "t4-16g", "memory_gb": 4})))
    told = plan.refusal(plan.memory, "profile t4-16g").splitlines()
    assert told[:3] == [
        "profile t4-16g has 3.7 GB for a stage, which is too small:",
        "  one takes 6.4 GB",
        "  two takes 6.4 GB",
    ]
    assert told[3] == "one, two: fits with --batch 32"
    assert "--profile v100-32g" in told[-1]
    assert plan.refusal(7e9, "a larger one") == ""
    assert make_plan([Large(name="one")], [], workspace("cpu")).refusal(1, "a CPU has no GPU's memory") == ""


def test_only_profiles_with_room_are_proposed(workspace) -> None:
    told = make_plan([Large(name="one", batch=600)], [], workspace("t4-16g")).refusal(1e9, "it").splitlines()[-1]
    assert told == "A GPU that has room for it as it is: --profile a100-80g, --profile h100-80g"
    told = make_plan([Large(name="one", batch=6000)], [], workspace("t4-16g")).refusal(1e9, "it")
    assert "has room" not in told


def test_a_disk_or_a_memory_that_is_too_small(workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = make_plan([Large(name="one")], [], workspace("cpu"))
    monkeypatch.setattr(planning, "machine_memory", lambda: 8e9)
    monkeypatch.setattr(planning, "free_space", lambda folder: 10e9)
    assert list(obstacles(plan, tmp_path)) == []
    monkeypatch.setattr(planning, "machine_memory", lambda: 7e9)  # 6.4 GB of tensors and 1 GB besides
    monkeypatch.setattr(planning, "free_space", lambda folder: 1e9)
    disk, memory = obstacles(plan, tmp_path)
    assert disk.startswith("disk: 2.0 GB are to be written, and 1.0 GB are free where ")
    assert memory == "memory: 7.4 GB are needed, and this machine has 7.0 GB"


def test_what_is_made_again_has_its_place_beside_what_was_there(workspace) -> None:
    one, two = Large(name="one", value=1000), Large(name="two", batch=8)
    assert make_plan([one, two], [], workspace("cpu")).to_write == 4e9
    workspace("cpu").get(one)
    assert make_plan([one, two], [], workspace("cpu")).to_write == 2e9
    plan = make_plan([one, two], [one], workspace("cpu"))
    assert plan.to_write == 4e9
    assert plan.steps[0].on_disk > 1000


def test_a_full_disk_is_told_before_the_first_stage(
    workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _check_room([Large(name="one")], [], workspace("cpu"))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(planning, "free_space", lambda folder: 1e9)
    _check_room([Large(name="one")], [], workspace("cpu"))
    assert capsys.readouterr().err.startswith("warning: disk: 2.0 GB are to be written, and 1.0 GB are free where ")


def test_room_is_not_looked_for_where_nothing_long_is_to_do(
    workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planning, "free_space", lambda folder: 1e9)
    stage = Large(name="one")
    workspace("cpu").get(stage)
    _check_room([stage], [], workspace("cpu"))
    assert capsys.readouterr() == ("", "")
    _check_room([stage], [stage], workspace("cpu"))
    assert "warning: disk: 2.0 GB" in capsys.readouterr().err


def test_what_a_stage_gives_back_is_there_for_the_next() -> None:
    tuned = Step("tuned", "to do", 0, Forecast(disk=15e9, stays=3e9))
    plain = Step("plain", "to do", 0, Forecast(disk=1e9))
    plan = Plan(profile("cpu"), [tuned, plain])
    assert (plan.to_write, plan.to_stay) == (15e9, 4e9)
    assert "15.0 GB to be written, 4.0 GB of them to stay, of " in page(plan, Path())
    later = Plan(profile("cpu"), [plain, tuned])
    assert (later.to_write, later.to_stay) == (16e9, 4e9)
    only = Plan(profile("cpu"), [plain])
    assert "to stay" not in page(only, Path())


@pytest.mark.parametrize(
    ("seconds", "at_least", "words"),
    [
        (0.004, False, "under a second"),
        (0.004, True, "seconds"),
        (3.2, False, "about 3.2 s"),
        (60, True, "at least 60 s"),
    ],
)
def test_parts_of_a_second_are_not_told_as_none(seconds: float, at_least: bool, words: str) -> None:
    step = Step("one", "to do", 0, Forecast(seconds=seconds, at_least=at_least, basis="so"))
    assert page(Plan(profile("cpu"), [step]), Path()).splitlines()[1].endswith(f"-  {words}")


def test_stages_are_named_before_they_are_asked(workspace) -> None:
    told: list[str] = []
    make_plan([Large(name="one"), Large(name="two", value=2)], [], workspace("cpu"), told.append)
    assert told == ["one", "two"]


@pytest.mark.parametrize("name", sorted(PEAKS))
def test_every_gpu_has_a_peak(name: str) -> None:
    gpu = profile(name)
    assert gpu.device == "cuda"
    speed = speed_of(gpu, gpu.dtype)
    assert speed.operations is not None
    assert speed.operations >= speed_of(gpu, "float32").operations > 1e12


def test_a_gpu_without_published_figures_has_no_time(workspace) -> None:
    made = profile({"type": "t4-16g"})
    unknown = Profile("auto", "made to measure", memory_gb=12, compute_capability=(8, 6), dtype="float16")
    traced = trace(lambda: torch.ones(4, device="meta") * 2)
    assert Outlook(workspace(made)).time(traced, 10, "float32")[0] > 0
    seconds, _, basis = Outlook(workspace(unknown)).time(traced, 10, "float32")
    assert (seconds, basis) == (None, "not known: nothing is published of the profile auto")


@pytest.mark.parametrize(
    ("changes", "processes", "optimizer", "graph"),
    [
        ({}, 1, {"type": "AdamW"}, True),
        ({}, 1, {"type": "SAM", "base": {"type": "Adam"}}, True),
        ({}, 1, {"type": "SGD", "lr": 0.1}, False),
        ({}, 2, {"type": "AdamW"}, False),
        ({"cuda_graphs": False}, 1, {"type": "AdamW"}, False),
        ({"type": "cpu"}, 1, {"type": "AdamW"}, False),
    ],
)
def test_a_step_that_is_a_cuda_graph_waits_for_no_launching(
    workspace, changes: dict[str, object], processes: int, optimizer: dict[str, object], graph: bool
) -> None:
    device = {"type": "rtx3090-24g", **changes}
    outlook = Outlook(workspace(profile(device)), processes=processes)
    model = on_meta(lambda: HeadWithLoss(nn.Linear(64, 8), ArcFace(8, 20)))
    training = Training(epochs=1_000, batch_size=10, optimizer=optimizer)
    found = forecast_training(outlook, model, training, images=1_000, others=0, width=64, files=1)
    assert ("a step is a CUDA graph: 0.5 us before each of its " in found.basis) == graph
    assert ("if launching kernels is what limits" in found.basis) == (device["type"] != "cpu" and not graph)
    if graph:
        kernels = int(found.basis.rpartition("of its ")[2].removesuffix(" kernels"))
        assert 100_000 * kernels * 0.5e-6 < found.seconds < 100_000 * kernels * 5e-6


def test_published_speeds_are_of_this_network_this_size_and_16_bits() -> None:
    gpu = profile("rtx3090-24g")
    rate, basis = published(gpu, "open_clip/ViT-H-14/laion2b_s32b_b79k", 224, "float16")
    assert (rate, basis) == (183.9, "184 images/s, published (timm, RTX 3090, mixed precision)")
    assert published(gpu, "timm/vit_huge_patch14_clip_224.laion2b", 224, "float16") == (rate, basis)
    assert published(gpu, "open_clip/ViT-H-14/laion2b_s32b_b79k", 224, "float32") is None
    assert published(gpu, "open_clip/ViT-H-14/laion2b_s32b_b79k", 280, "float16") is None
    assert published(profile("v100-32g"), "open_clip/ViT-H-14/laion2b_s32b_b79k", 224, "float16") is None
    assert published(gpu, "timm/test_vit", 160, "float16") is None


def test_the_cpu_is_measured_and_named_so() -> None:
    speed = speed_of(profile("cpu"), "float32")
    assert 1e8 < speed.operations < 1e14
    assert speed.basis.endswith("measured here")


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({"type": "cpu"}, 100 + 1000 * 0.4 / 4),  # of the same cores
        ({"type": "t4-16g", "workers": 2}, 1000 * 0.4 / 2),  # which are slower than the network
        ({"type": "t4-16g", "workers": 16}, 100),  # of which four have a core: as slow as the network
        ({"type": "t4-16g", "workers": 0}, 100 + 1000 * 0.4),
    ],
)
def test_a_network_is_not_faster_than_its_images_come(changes: dict[str, object], seconds: float) -> None:
    found, basis = with_decoding(100, "so", 1000, 0.4, profile(changes), cores=4)
    assert found == pytest.approx(seconds)
    assert basis == "so; decoding 400.0 ms of a core an image, measured here"
    assert with_decoding(100, "so", 1000, None, profile(changes), cores=4) == (
        100,
        "so; without decoding, which is measured on the images",
    )


def test_decoding_is_measured_on_some_of_the_images(tmp_path: Path) -> None:
    for number in range(300):
        Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(tmp_path / f"{number:03d}.png")
    (tmp_path / "150.png").write_bytes(b"no image")
    refs = [ImageRef(str(path)) for path in sorted(tmp_path.iterdir())]
    seen: list[int] = []
    found = decoding(refs, lambda image: seen.append(int(image[0, 0, 0])), method="full", target=8)
    assert found is not None
    assert 0 < found < 10
    assert 2 <= len(seen) <= 64
    assert seen[0] == 0
    for path in tmp_path.iterdir():
        path.unlink()
    assert decoding(refs, lambda image: None, method="full", target=8) is None


def test_a_data_set_of_unknown_size_leaves_what_depends_on_it_unknown(workspace, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    prepare = Prepare(name="prepare", data=[{"type": "folder", "root": str(folder)}])
    split = Split(name="split", manifest=prepare, splits=[{"type": "UnseenClasses", "folds": 2}])
    features = Features(
        name="features", manifest=split, backbone={"type": "timm/test_vit", "weights": "none"}, view={"type": "Squash"}
    )
    plan = make_plan([prepare, split, features], [], workspace("t4-16g"))
    whole, parts, seen = (step.forecast for step in plan.steps)
    [missing] = whole.missing
    assert missing.what == "data set folder"
    assert missing.where.startswith(f"{folder}: no such folder")
    assert (whole.disk, parts.disk, seen.disk, seen.seconds) == (None, None, None, None)
    assert seen.does.startswith("[N, 3, 160, 160] -> [64] each, float16; timm/test_vit on 256 at once, in float32")
    assert seen.device > 256 * 3 * 160 * 160 * 4
    assert seen.parameters == sum(p.numel() for p in built().parameters())


def built() -> torch.nn.Module:
    from guie_core import build

    network: torch.nn.Module = build("backbones", {"type": "timm/test_vit", "weights": "none"})
    return network


def test_shares_of_splits_are_taken_in_turn(workspace) -> None:
    prepare = Silent(name="prepare")
    split = Split(
        name="split",
        manifest=prepare,
        splits=[{"type": "HoldOutClasses", "classes": 0.1}, {"type": "StratifiedImages", "folds": 4, "min_images": 2}],
    )
    outlook = Outlook(workspace("cpu"))
    outlook._forecasts["prepare"] = Forecast(gives=Images(Extent(1000, 50, ("a", "b"), exact=True)))
    found = outlook.forecast(split)
    assert {name: (each.images, each.classes) for name, each in found.gives.splits.items()} == {
        "test": (100, 5),
        "valid": (225, 45),
        "train": (675, 45),
    }
    assert found.does == "train about 675, test about 100, valid about 225"


def test_times_and_details_of_stages_that_are_alike_are_told_once(tmp_path: Path) -> None:
    alike = Forecast(does="this", parameters=10, trained=0, seconds=100, at_least=True, basis="at some speed", host=1e9)
    told = page(Plan(profile("cpu"), [Step("one", "to do", 0, alike), Step("two", "to do", 0, alike)]), tmp_path)
    assert told.count("at least 100 s") == 2
    assert told.count("time: at some speed") == 1
    assert "time    at least 3 min" in told


def test_what_is_missing_is_named_once(tmp_path: Path) -> None:
    missing = Missing("weights of something", "https://example.org", "how to get them")
    steps = [Step(name, "to do", 0, Forecast(missing=[missing])) for name in ("one", "two")]
    assert page(Plan(profile("cpu"), steps), tmp_path).count("weights of something\n      https://example.org\n") == 1


def test_mistakes_in_settings_end_a_plan(workspace) -> None:
    prepare = Prepare(name="prepare", data=[])
    split = Split(name="split", manifest=prepare, splits=[{"type": "HoldOut", "classes": 1}])
    outlook = Outlook(workspace("cpu"))
    outlook._forecasts["prepare"] = Forecast(gives=Images(Extent(10, 5)))
    with pytest.raises(GuieError, match="Did you mean HoldOutClasses"):
        outlook.forecast(split)
    with pytest.raises(NotKnown):
        Outlook(workspace("cpu")).given(Silent(name="silent"), Images)


def test_stages_that_look_through_one_view_are_counted_once(workspace) -> None:
    prepare = Silent(name="prepare")

    def features(name: str, **more: object) -> Features:
        network = {"type": "timm/test_vit", "weights": "none"}
        return Features(name=name, manifest=prepare, backbone=network, view={"type": "Squash"}, **more)

    outlook = Outlook(workspace("cpu"))
    whole = Extent(100, 5, exact=True)
    outlook._forecasts["prepare"] = Forecast(gives=Images(whole, {"test": Extent(30, 2), "train": Extent(70, 3)}))
    each = 64 * 2 + 36
    found = {
        name: outlook.forecast(features(name, **more))
        for name, more in {
            "rest": {"without": ("test",)},
            "train": {"splits": ("train",)},
            "all": {},  # with the reported ones, which the first does not compute
            "reported": {"splits": ("test",)},
            "others": {"splits": ("test",), "shape": "other"},
            "in other digits": {"dtype": "float32"},
        }.items()
    }
    # all: with the reported ones alone, since the rest is there by then
    assert [forecast.disk for forecast in found.values()] == [70 * each, 0, 30 * each, 0, 0, 100 * (64 * 4 + 36)]
    assert found["others"].does == "the same features as 'all'"
    assert found["others"].gives == found["all"].gives
    # where all are trained on
    twins = [features("train", splits=("train",), seed=1), features("valid", seed=1)]
    outlook = Outlook(workspace("cpu"))
    outlook._forecasts["prepare"] = Forecast(gives=Images(whole, {"train": Extent(100, 5)}))
    first, second = [outlook.forecast(twin) for twin in twins]
    assert first.disk == 100 * each
    assert (second.does, second.disk, second.basis) == ("the same features as 'train'", 0, "nothing")
    assert second.gives == first.gives


def evaluate(**more: object) -> Evaluate:
    manifest, part = Silent(name="split"), Silent(name="valid")
    return Evaluate(
        **{
            **dict.fromkeys(("classifier", "tuned", "untuned", "augmentation")),
            **{"name": "evaluate", "manifest": manifest, "train": part, "valid": part, "head": part, "switched": {}},
            **{"protocol": {"type": "LeaveOneOut"}, "metrics": ("mP@5",), "pca": 0, **more},
        }
    )


def outlook_of(workspace: Workspace, **splits: Extent) -> Outlook:
    """One that knows of so many images in splits, and of 100 features each."""
    outlook = Outlook(workspace)
    outlook._forecasts["split"] = Forecast(gives=Images(united(splits.values()), splits))
    outlook._forecasts["valid"] = Forecast(gives=Stored(100))
    return outlook


def test_an_evaluation_takes_the_time_of_its_products(workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "probe", lambda dtype: ({"float32": 1e9, "float64": 5e8}[dtype], 1e9))
    outlook = outlook_of(workspace("cpu"), train=Extent(5000, 50), test=Extent(2000, 300))
    found = outlook.forecast(evaluate())
    assert found.does == "2 systems on about 2,000 queries among about 2,000 images"
    assert (found.seconds, found.at_least) == (2 * 2000 * 2000 * 100 / 1e9, True)
    assert found.basis == "search at 1 GFLOP/s in float32, measured here"
    fitted = evaluate(name="with PCA", pca=64)
    assert outlook.forecast(fitted).seconds == 2 * 2000 * 2000 * 164 / 1e9 + 2 * 5000 * 100**2 / 5e8
    assert outlook_of(workspace("t4-16g"), test=Extent(2000, 300)).forecast(evaluate()).seconds is None


def test_distractors_take_memory_and_disk_as_well(workspace) -> None:
    outlook = outlook_of(workspace("cpu"), train=Extent(90_000, 9_000), test=Extent(2000, 300))
    protocol = {"type": "FirstAgainstSecond", "split": "test"}
    few, many = [
        outlook.forecast(evaluate(name=str(count), protocol={**protocol, "distractors": count})) for count in (0, 20)
    ]
    assert few.does == "2 systems on about 300 queries among about 300 images"
    assert many.does == "2 systems on about 300 queries among about 6,300 images"
    # and all threads together hold wider groups of candidates: 8 rows of the index instead of 4, for six neighbours
    threads = torch.get_num_threads()
    groups = threads * -(-300 // threads) * 6 * (8 - 4) * 100 * (4 + 8 + 4 + 4)
    assert many.host - few.host == 3 * 6000 * 100 * 4 + groups
    assert many.disk - few.disk == 2 * 6000 * 8


def test_more_components_than_features_end_a_plan(workspace) -> None:
    outlook = Outlook(workspace("cpu"))  # how many images there are isn't known
    outlook._forecasts["valid"] = Forecast(gives=Stored(100))
    with pytest.raises(GuieError, match=r"^recipe\.evaluation\.pca: 101 dimensions of 100 features; lower it to 100"):
        outlook.forecast(evaluate(pca=101))


def test_a_split_that_nobody_makes_is_told_in_the_plan(workspace) -> None:
    outlook = outlook_of(workspace("cpu"), train=Extent(90, 9), test=Extent(20, 3))
    found = outlook.forecast(evaluate(protocol={"type": "LeaveOneOut", "split": "tset"}))
    told = (
        "recipe.evaluation.protocol: no image is in split 'tset'; the splits are: 'test', 'train'. Did you mean 'test'?"
    )
    assert found.basis == f"{told} Or does it come with the data?"


def test_what_is_done_again_takes_its_time_again(workspace) -> None:
    stage = Large(name="large")
    space = workspace("cpu")
    space.get(stage)
    assert make_plan([stage], [], workspace("cpu")).to_do == []
    [step] = make_plan([stage], [stage], workspace("cpu")).to_do
    assert (step.state, step.forecast.seconds) == ("again", 7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_backbones_in_backbones_are_built_without_weights(workspace, tmp_path: Path, dtype: str) -> None:
    away = {"type": "timm/test_vit", "weights": f"file:{tmp_path}/away.pth"}
    config = {"type": "concat", "backbones": [away, {"type": "timm/test_resnet", "weights": "none"}]}
    frozen = Frozen.of(config, Outlook(workspace("cpu")))
    traced = frozen.traced(4, dtype, (3, 160, 160))
    weights = sum(p.numel() * p.element_size() for p in frozen.backbone.parameters())
    assert traced.peak > weights / (2 if dtype == "bfloat16" else 1)
    assert traced.operations > 4 * 2 * 160**2
    told = "no such file or installed package: correct recipe.backbone.weights"
    assert list(frozen.missing()) == [Missing(f"weights file:{tmp_path}/away.pth", told)]


def test_the_largest_micro_batch_is_a_power_of_two() -> None:
    assert list(powers_below(512)) == [256, 128, 64, 32, 16, 8, 4, 2, 1]
    assert next(powers_below(500)) == 256
    assert list(powers_below(2)) == [1]
    assert list(powers_below(1)) == []
