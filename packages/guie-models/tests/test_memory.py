"""A network is loaded from a local file without a second copy of it in memory.

What is measured is memory of the process's own (RssAnon), which a machine can run out of; pages of a mapped file are
the disk's. The instrument is checked on a plain torch.load beside, which holds two copies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import guie_models
from guie_models.backbones import TimmBackbone
from guie_models.embedder import Embedder
from guie_models.heads import Linear
from guie_models.views import Squash

CLIP, VIT = "ViT-B-16", "vit_base_patch16_224"  # towers of 86 million parameters
RUN = """
import json, os, sys, threading, time
import open_clip, timm, torch
from safetensors.torch import load_file
import guie_models
from guie_models.backbones import OpenClipBackbone, TimmBackbone

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

def plain(path):
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    config = open_clip.get_model_config("ViT-B-16")
    network = open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"])
    network.load_state_dict({name[7:]: value for name, value in state.items() if name.startswith("visual.")})
    return network

WAYS = {
    "plain": plain,
    "tower": lambda path: OpenClipBackbone("ViT-B-16", weights=f"file:{path}"),
    "resized": lambda path: OpenClipBackbone("ViT-B-16", weights=f"file:{path}", image_size=280, stride=14),
    "timm": lambda path: TimmBackbone("vit_base_patch16_224", weights=f"file:{path}"),
    "embedder": guie_models.load,
}

def measure(way, path):
    before, peak, running = anonymous(), 0, True

    def look():
        nonlocal peak
        while running:
            peak = max(peak, anonymous())
            time.sleep(0.001)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    network = WAYS[way](path)
    running = False
    looking.join()
    size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    return {"size": size, "peak": peak - before}

torch.set_num_threads(1)
for way, path in json.loads(sys.argv[1]):
    if child := os.fork():  # a process for each, so that none uses what another has freed
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{way} failed")
    else:
        print(json.dumps([way, os.path.basename(path), measure(way, path)]), flush=True)
        os._exit(0)
"""


def numbers(shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.empty(value.shape).uniform_(-0.02, 0.02) for name, value in shapes.items()}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, int]]:
    """By way of loading and name of the file, bytes: of the network, and of memory at the most beyond that before."""
    folder = tmp_path_factory.mktemp("weights")
    config = open_clip.get_model_config(CLIP)
    config["text_cfg"]["layers"] = 1
    with torch.device("meta"):
        clip = open_clip.model.CLIP(**config).state_dict()
        vit = timm.create_model(VIT).state_dict()
    clip, vit = numbers(clip), numbers(vit)
    torch.save({"epoch": 1, "state_dict": clip}, folder / "clip.pt")
    save_file(clip, folder / "clip.safetensors")
    torch.save({name: value.half() for name, value in vit.items()}, folder / "vit.pth")
    backbone = TimmBackbone(VIT, weights="none")
    embedder = Embedder(backbone, Linear(backbone.features, 64), Squash(224, backbone.mean, backbone.std))
    guie_models.save(embedder, folder / "embedder.safetensors")

    ways = [(way, str(folder / file)) for way, file in [("plain", "clip.pt"), *LOADED]]
    modules = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(ways)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": modules},
    )
    assert done.returncode == 0, done.stderr
    return {(way, file): found for way, file, found in map(json.loads, done.stdout.splitlines())}


LOADED = [
    ("tower", "clip.pt"),
    ("tower", "clip.safetensors"),
    ("resized", "clip.pt"),
    ("resized", "clip.safetensors"),
    ("timm", "vit.pth"),
    ("embedder", "embedder.safetensors"),
]


@pytest.mark.parametrize(("way", "file"), LOADED)
def test_one_copy(way: str, file: str, measured: dict[tuple[str, str], dict[str, int]]) -> None:
    found = measured[way, file]
    assert found["size"] > 300e6
    assert found["peak"] < 1.2 * found["size"]


def test_the_instrument_sees_two_copies(measured: dict[tuple[str, str], dict[str, int]]) -> None:
    found = measured["plain", "clip.pt"]
    assert found["peak"] > 1.9 * found["size"]
