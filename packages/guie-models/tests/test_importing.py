"""Published and foreign checkpoints: files of exactly the published structure, and the published ones where present.

The real files are looked for in $GUIE_PUBLISHED: kqi_3090_ex072_ep650_bestlb.pth and cls-last.ckpt, from models/ of
the 5th place's public repository.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import types
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from guie_core import GuieError, UsageError
from guie_core.cli import main
from guie_models.augmentation import SwitchedAugmentation
from guie_models.backbones import OpenClipBackbone, TimmBackbone
from guie_models.embedder import Embedder
from guie_models.heads import BatchNormLinear, Linear
from guie_models.importing import FIFTH_PLACE_CATEGORIES, PUBLISHED, fifth_place_embedder, import_part
from guie_models.saved import load


def head_file(path: Path) -> dict[str, torch.Tensor]:
    """The structure of recipes, point 11."""
    generator = torch.Generator().manual_seed(0)
    model = OrderedDict(
        [
            ("neck.0.running_mean", torch.randn(1027, generator=generator)),
            ("neck.0.running_var", torch.rand(1027, generator=generator) + 0.5),
            ("neck.0.num_batches_tracked", torch.tensor(1_869_400)),
            ("neck.1.weight", torch.randn(64, 1027, generator=generator)),
            ("neck.1.bias", torch.randn(64, generator=generator)),
            ("arc.weight", torch.randn(15003, 64, generator=generator)),
        ]
    )
    torch.save({"model": model}, path)
    return dict(model)


def classifier_file(path: Path) -> dict[str, torch.Tensor]:
    """A Lightning checkpoint whose other entries are objects of a config library that isn't here when it is read."""
    library = types.ModuleType("omegaconf")
    source = """
class DictConfig:
    def __init__(self, content): self.__dict__["_content"] = content
    def __getstate__(self): return {"_content": self._content, "_metadata": Metadata()}
class Metadata:
    ref_type = None
"""
    exec(source, library.__dict__)
    for name in ("DictConfig", "Metadata"):
        library.__dict__[name].__module__ = "omegaconf"
    sys.modules["omegaconf"] = library
    try:
        state = OrderedDict(
            [("model.classifier.0.weight", torch.randn(11, 1024)), ("model.classifier.0.bias", torch.randn(11))]
        )
        content = {
            "epoch": 100,
            "global_step": 24500,
            "pytorch-lightning_version": "1.5.10",
            "state_dict": state,
            "hparams_name": "conf",
            "hyper_parameters": library.DictConfig(defaultdict(dict, lr=0.01)),
        }
        torch.save(content, path)
    finally:
        del sys.modules["omegaconf"]
    return dict(state)


def test_the_published_head(tmp_path: Path) -> None:
    model = head_file(tmp_path / "head.pth")
    found = import_part(tmp_path / "head.pth")
    head = found.module
    assert isinstance(head, BatchNormLinear)
    assert (found.part, head.in_features, head.out_features, head.size_features) == ("head", 1024, 64, 3)
    assert not head.training
    assert found.centres is not None
    assert torch.equal(found.centres, model["arc.weight"])
    x = torch.randn(5, 1027, dtype=torch.float64)
    # the formula by hand: batch norm without affine parameters, eps 1e-6, then linear
    mean, var, weight, bias = (
        model[f"neck.{name}"].double() for name in ("0.running_mean", "0.running_var", "1.weight", "1.bias")
    )
    expected = (x - mean) / torch.sqrt(var + 1e-6) @ weight.T + bias
    torch.testing.assert_close(head(x.float()).double(), expected, rtol=1e-4, atol=1e-3)
    assert found.found[0] == "the 5th place's head"
    assert "class centres [15003, 64]: for training on, no part of an embedder" in found.found


def test_the_published_classifier(tmp_path: Path) -> None:
    state = classifier_file(tmp_path / "cls.ckpt")
    found = import_part(tmp_path / "cls.ckpt")
    assert isinstance(found.module, Linear)
    assert (found.part, found.module.in_features, found.module.out_features) == ("classifier", 1024, 11)
    x = torch.randn(3, 1024)
    expected = x @ state["model.classifier.0.weight"].T + state["model.classifier.0.bias"]
    torch.testing.assert_close(found.module(x), expected, rtol=1e-5, atol=1e-4)
    assert "besides: epoch 100, global_step 24500, pytorch-lightning_version 1.5.10, hparams_name conf" in found.found
    assert any(line.startswith("not executed: ") and "omegaconf.DictConfig" in line for line in found.found)
    assert "omegaconf" not in sys.modules


@torch.no_grad()
def test_the_embedder_of_both(tmp_path: Path) -> None:
    head_file(tmp_path / "head.pth")
    classifier_file(tmp_path / "cls.ckpt")
    head, classifier = import_part(tmp_path / "head.pth").module, import_part(tmp_path / "cls.ckpt").module
    backbone = OpenClipBackbone("RN50", weights="none", image_size=64)  # the smallest with 1024 projected features
    embedder = fifth_place_embedder(backbone, head, classifier)
    assert embedder.augmentation is not None
    assert embedder.augmentation.padded_for.tolist() == [0, 8, 10]
    assert len(FIFTH_PLACE_CATEGORIES) == classifier.out_features
    for image in (torch.rand(1, 3, 40, 40) * 255, torch.rand(1, 3, 30, 70) * 255):
        embedding = embedder(image)
        assert embedding.shape == (1, 64)
        assert abs(float(embedding.norm()) - 1) < 1e-5
    assert fifth_place_embedder(backbone, head, None).augmentation is None


def test_other_checkpoints_by_a_mapping(tmp_path: Path) -> None:
    linear = nn.Linear(32, 8)
    config = {"type": "Linear", "in_features": 32, "out_features": 8}
    states: dict[str, Any] = {
        "plain.pth": {"fc.weight": linear.weight.data, "fc.bias": linear.bias.data},
        # as mmengine writes: meta, a message hub of objects, a state dictionary
        "mmengine.pth": {
            "meta": {"epoch": 3, "experiment_name": "x", "hook": Path("x")},
            "message_hub": {"log": [Path("y")]},
            "state_dict": {"head.fc.weight": linear.weight.data, "head.fc.bias": linear.bias.data},
        },
    }
    for name, content in states.items():
        torch.save(content, tmp_path / name)
    save_file({"neck.weight": linear.weight.data, "neck.bias": linear.bias.data}, tmp_path / "x.safetensors")
    mappings = {"plain.pth": "fc.", "mmengine.pth": "state_dict.head.fc.", "x.safetensors": "neck."}
    for name, start in mappings.items():
        found = import_part(tmp_path / name, "head", mapping={start: "linear."}, config=config)
        x = torch.randn(4, 32)
        torch.testing.assert_close(found.module(x), linear(x))
    with pytest.raises(GuieError, match=r"plain\.pth: this is not laid out as .*It holds: fc\.weight, fc\.bias"):
        import_part(tmp_path / "plain.pth")
    with pytest.raises(UsageError, match="a mapping needs the part"):
        import_part(tmp_path / "plain.pth", mapping={"fc.": "linear."})
    with pytest.raises(GuieError, match=r"linear\.weight is \[8, 32\], wanted \[9, 32\]"):
        import_part(tmp_path / "plain.pth", "head", mapping={"fc.": "linear."}, config=config | {"out_features": 9})


def test_a_mapping_does_not_fall_back_to_order(tmp_path: Path) -> None:
    """Shapes would agree: running_var for running_mean, one hidden layer for another."""
    state = {"a.running_var": torch.full((7,), 9.0), "a.running_mean": torch.zeros(7)}
    state |= {"a.num_batches_tracked": torch.tensor(3), "a.weight": torch.ones(2, 7), "a.bias": torch.zeros(2)}
    torch.save(state, tmp_path / "x.pt")
    config = {"type": "BatchNormLinear", "in_features": 4, "out_features": 2}
    with pytest.raises(GuieError, match=r"Missing: norm\.running_mean(.|\n)*Not wanted: typo\.running_var"):
        import_part(tmp_path / "x.pt", "head", mapping={"a.": "typo."}, config=config)
    state = {
        f"z.{i}.{name}": torch.full(shape, i) for i in (2, 1) for name, shape in (("weight", (4, 4)), ("bias", (4,)))
    }
    torch.save({name: value.float() for name, value in state.items()}, tmp_path / "y.pt")
    config = {"type": "MLP", "in_features": 4, "out_features": 4, "hidden": [4], "norm": "none"}
    with pytest.raises(GuieError, match=r"Not wanted: layer\.2\.weight"):
        import_part(tmp_path / "y.pt", "head", mapping={"z.": "layer."}, config=config)
    torch.save({f"z.{i}": value.float() for i, value in enumerate(state.values())}, tmp_path / "z.pt")
    with pytest.raises(GuieError, match=r"Not wanted: 0; 1; 2; 3"):
        import_part(tmp_path / "z.pt", "head", mapping={"z.": ""}, config=config)


def test_the_published_head_without_class_centres(tmp_path: Path) -> None:
    model = head_file(tmp_path / "head.pth")
    torch.save({"model": {name: value for name, value in model.items() if name != "arc.weight"}}, tmp_path / "head.pth")
    found = import_part(tmp_path / "head.pth")
    assert found.centres is None
    assert torch.equal(found.module.linear.bias, model["neck.1.bias"])


def test_a_classifier_of_other_categories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head_file(tmp_path / "head.pth")
    for classes in (3, 11):
        torch.save({"fc.weight": torch.randn(classes, 1024), "fc.bias": torch.randn(classes)}, tmp_path / "c.pt")
        settings = [f"classifier.out_features={classes}", "classifier.in_features=1024", "classifier.type=Linear"]
        settings += ["backbone.weights=none", "backbone.image_size=64"]
        arguments = ["--head", str(tmp_path / "head.pth"), "--classifier", str(tmp_path / "c.pt")]
        arguments += ["--map-classifier", "fc.=linear.", "--backbone", "open_clip/RN50"]
        arguments += [argument for setting in settings for argument in ("--set", setting)]
        code, out, err = _guie(capsys, *arguments, "--output", str(tmp_path / f"model{classes}"))
        assert (code, err) == (0, "")
        assert "What the classifier's outputs mean is not known" in out
        embedder = load(tmp_path / f"model{classes}" / "embedder.safetensors")
        assert embedder.augmentation is not None
        assert embedder.augmentation.padded_for.tolist() == []
        assert "toys" not in (tmp_path / f"model{classes}" / "README.md").read_text()


def test_categories_are_the_classifiers_own(tmp_path: Path) -> None:
    backbone = TimmBackbone("test_vit", weights="none", image_size=96)
    head, classifier = Linear(backbone.features, 4), Linear(backbone.features, 3)
    with pytest.raises(UsageError, match="The classifier tells 3 categories apart; 11 names are given"):
        fifth_place_embedder(backbone, head, classifier)
    embedder = fifth_place_embedder(backbone, head, classifier, ("rest", "toys", "cars"))
    assert embedder.augmentation is not None
    assert embedder.augmentation.padded_for.tolist() == [1]
    augmentation = SwitchedAugmentation(96, backbone.mean, backbone.std, padded_for=(0, 3))
    with pytest.raises(UsageError, match="pads for category 3; the classifier tells 3 apart"):
        Embedder(backbone, head, embedder.view, augmentation, classifier)


def test_what_is_printed_moves_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ansi = "\x1b[2J\x1b[31mall is well\x07\u202e"
    state = {"fc.weight": torch.zeros(3, 64), "fc.bias": torch.zeros(3), f"x{ansi}": torch.ones(1)}
    torch.save(state | {"note": ansi, f"k{ansi}": 1, "long": "x" * 10_000}, tmp_path / "x.pt")
    settings = ["head.type=Linear", "head.in_features=64", "head.out_features=3"]
    arguments = ["--head", str(tmp_path / "x.pt"), *(item for one in settings for item in ("--set", one))]
    for mapping, wanted in (("fc.=linear.", 0), ("fcc.=linear.", 1), ("=linear.", 1), ("", 1)):
        code, out, err = _guie(capsys, *arguments, *(["--map-head", mapping] if mapping else []))
        assert code == wanted
        assert all(letter.isprintable() or letter == "\n" for letter in out + err)
        assert "\\x1b[2J" in out + err
        assert len(out + err) < 2000


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    """Of a file of 200 MB a part of 800 bytes is taken."""
    torch.save(
        {"fc.weight": torch.ones(3, 64), "fc.bias": torch.zeros(3), "big": torch.ones(50_000_000)}, tmp_path / "x.pt"
    )
    config = "dict(type='Linear', in_features=64, out_features=3)"
    program = (
        "import resource, sys\n"
        "from guie_models.importing import import_part\n"
        f"import_part(sys.argv[1], 'head', mapping={{'fc.': 'linear.'}}, config={config})\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "import_part(sys.argv[2], 'head', mapping={'fc.': 'linear.'}, config=" + config + ")\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)\n"
    )
    torch.save({"fc.weight": torch.ones(3, 64), "fc.bias": torch.zeros(3)}, tmp_path / "small.pt")
    command = [sys.executable, "-c", program, str(tmp_path / "small.pt"), str(tmp_path / "x.pt")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 50e6


def test_a_head_asked_of_the_classifiers_file(tmp_path: Path) -> None:
    classifier_file(tmp_path / "cls.ckpt")
    with pytest.raises(GuieError, match="this is not laid out as the 5th place's head"):
        import_part(tmp_path / "cls.ckpt", "head")


@pytest.mark.skipif("GUIE_PUBLISHED" not in os.environ, reason="GUIE_PUBLISHED names no folder with the real files")
def test_the_real_files() -> None:
    folder = Path(os.environ["GUIE_PUBLISHED"])
    head = import_part(folder / "kqi_3090_ex072_ep650_bestlb.pth")
    classifier = import_part(folder / "cls-last.ckpt")
    assert head.found[0].endswith("the published head, epoch 650 (Apache-2.0)")
    assert classifier.found[0].endswith("the published classifier, last epoch (Apache-2.0)")
    assert {line.removeprefix("sha256 ") for part in (head, classifier) for line in part.found[1:2]} == set(PUBLISHED)
    assert head.centres is not None
    assert head.centres.shape == (15003, 64)
    assert float(head.module.norm.running_var.min()) > 0


def _guie(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["models", "import", *arguments])
    out, err = capsys.readouterr()
    return int(str(stop.value.code)), out, err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head_file(tmp_path / "head.pth")
    classifier_file(tmp_path / "cls.ckpt")
    parts = ["--head", str(tmp_path / "head.pth"), "--classifier", str(tmp_path / "cls.ckpt")]
    code, out, err = _guie(capsys, *parts)
    assert (code, err) == (0, "")
    assert "head.pth: the 5th place's head\n" in out
    backbone = ["--backbone", "open_clip/RN50", "--set", "backbone.weights=none", "--set", "backbone.image_size=64"]
    code, out, err = _guie(capsys, *parts, *backbone, "--output", str(tmp_path / "model"))
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].endswith("model/embedder.safetensors")
    assert load(tmp_path / "model" / "embedder.safetensors").head.out_features == 64
    assert "padded view for apparel, packaged, toys" in (tmp_path / "model" / "README.md").read_text()


def test_the_commands_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _guie(capsys) == (
        2,
        "",
        "error: name the checkpoint of a head (--head FILE), of a classifier (--classifier FILE), or both.\n",
    )
    assert _guie(capsys, "--head", str(tmp_path / "x"))[::2] == (1, f"error: {tmp_path}/x: no such file.\n")
    head_file(tmp_path / "head.pth")
    code, _, err = _guie(capsys, "--head", str(tmp_path / "head.pth"), "--set", "haed.type=Linear")
    assert code == 2
    assert "Did you mean 'head'?" in err
    code, _, err = _guie(capsys, "--head", str(tmp_path / "head.pth"), "--map-head", "fc.=linear.")
    assert code == 2
    assert err.startswith("error: --map-head needs to be told what the head is: --set head.type=Linear")
    code, _, err = _guie(capsys, "--head", str(tmp_path / "head.pth"), "--set", "head.type=Linear", "--map-head", "fc")
    assert (code, err) == (2, "error: --map-head 'fc' is not of the form FROM=TO; for example --map-head fc.=linear.\n")


@torch.no_grad()
def test_a_timm_model_with_a_linear_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As most training code saves it: the advice of the first try, followed, gives what the model gives."""
    torch.manual_seed(0)
    model: Any = timm.create_model("test_resnet", num_classes=16).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    file = str(tmp_path / "model.pth")
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, file)
    code, _, err = _guie(capsys, "--head", file, "--backbone", "timm/test_resnet")
    assert code == 1
    advice = shlex.split(err.partition("guie models import: ")[2])
    assert advice == ["--map-head", "state_dict.fc.=linear.", "--set", "head.type=Linear"]
    arguments = ["--head", file, *advice, "--backbone", "timm/test_resnet", "--set", f"backbone.weights=file:{file}"]
    code, out, err = _guie(capsys, *arguments, "--set", "view.type=CenterCrop", "--output", str(tmp_path / "model"))
    assert (code, err) == (0, "")
    assert "head: Linear with linear.weight [16, 96], linear.bias [16]" in out
    assert "view: CenterCrop(" in out
    embedder = load(tmp_path / "model" / "embedder.safetensors")
    size, mean, std = model.default_cfg["input_size"][1], model.default_cfg["mean"], model.default_cfg["std"]
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)  # which CenterCrop leaves as it is
    pixels = (image / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    expected = nn.functional.normalize(model(pixels[None]))
    torch.testing.assert_close(embedder(image[None]), expected, rtol=1e-4, atol=1e-5)


def test_sizes_are_told_by_the_weight(tmp_path: Path) -> None:
    state = {"fc.weight": torch.zeros(8, 35), "fc.bias": torch.zeros(8)}
    torch.save(state, tmp_path / "x.pth")
    for config, wanted in (({}, 35), ({"size_features": 3}, 32)):
        found = import_part(tmp_path / "x.pth", "head", mapping={"fc.": "linear."}, config={"type": "Linear", **config})
        assert isinstance(found.module, Linear)
        assert (found.module.in_features, found.module.out_features) == (wanted, 8)
    torch.save({f"fc{n}.weight": torch.zeros(8, 35) for n in range(2)}, tmp_path / "y.pth")
    with pytest.raises(GuieError, match=r"such as \{'neck\.fc\.': 'linear\.'\}"):
        import_part(tmp_path / "y.pth")
