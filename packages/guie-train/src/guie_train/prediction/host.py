"""Runs a submission as the contest's host does: in a process of its own, with torch and without guie.

    python -I host.py saved_model.pt images.npz results.json cpu|cuda repeats

Nothing of guie is imported here, and the process refuses to import guie, timm, open_clip and torchvision. `images.npz`
has uint8 arrays [3, H, W] by name; those whose name begins with "timed" are run `repeats` times more and measured.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from typing import Any

REFUSED = ("guie", "timm", "open_clip", "torchvision")


class Refuse:
    """Finds no module of REFUSED."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0].startswith(REFUSED):
            raise ImportError(f"{name} is not there where submissions run")


def main(model_path: str, images_path: str, results_path: str, device: str, repeats: int) -> None:
    """Writes what was found as JSON; a model that can't be loaded or fails on an image is a finding, not an error."""
    sys.meta_path.insert(0, Refuse())
    warnings.simplefilter("ignore")
    import numpy as np
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device}

    def embedding(image: Any, dtype: Any) -> Any:
        with torch.no_grad():
            result = model(torch.from_numpy(image)[None].to(device, dtype))
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    def attempt(image: Any, dtype: Any) -> dict[str, Any]:
        try:
            result = embedding(image, dtype)
            return {"shape": list(result.shape), "values": result.double().flatten().tolist()}
        except Exception as error:
            return {"error": last_line(error)}

    start = time.perf_counter()
    try:
        model = torch.jit.load(model_path, map_location=device).eval()
    except Exception as error:
        found["error"] = last_line(error)
    else:
        found["load_seconds"] = time.perf_counter() - start
        with np.load(images_path, allow_pickle=False) as archive:
            images = {name: archive[name] for name in archive.files}
        found["images"] = {name: attempt(image, torch.float32) for name, image in images.items()}
        found["again"] = {name: attempt(image, torch.float32) for name, image in images.items()}
        found["uint8"] = attempt(next(iter(images.values())), torch.uint8)
        found["seconds"] = []
        for name, image in images.items():
            if name.startswith("timed") and "error" not in found["images"][name]:
                for _ in range(repeats):
                    start = time.perf_counter()
                    embedding(image, torch.float32)
                    found["seconds"].append(time.perf_counter() - start)
        # kilobytes on Linux
        found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with open(results_path, "w", encoding="utf-8") as file:
        json.dump(found, file)


def last_line(error: BaseException) -> str:
    """What an exception says at its end, where TorchScript has the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
