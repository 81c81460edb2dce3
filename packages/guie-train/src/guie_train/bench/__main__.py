"""Measures one part, for `guie bench`: `python -m guie_train.bench TASK.json ANSWER.json`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from guie_core import GuieError
from guie_core.files import explain_os_errors
from guie_core.plugins import load_plugin_files
from guie_core.profiles import profile
from guie_datasets import BadImage, ImageRef
from guie_train.bench.parts import Sizes, Task, measure


def main(question: Path, answer: Path) -> None:
    """Writes the part, or what people can be told of why there is none."""
    task: dict[str, Any] = json.loads(question.read_text())
    found: dict[str, Any]
    try:
        load_plugin_files(task["plugins"])
        part = measure(
            task["part"],
            Task(
                profile=profile(task["profile"]),
                backbone=task["backbone"],
                images=[ImageRef(*each) for each in task["images"]],
                images_told=task["images_told"],
                seconds=task["seconds"],
                sizes=Sizes(**task.get("sizes", {})),
            ),
        )
        found = asdict(part)
    except BadImage as error:
        hint = "guie data prepare makes a manifest of the images that can be used; name that with --images"
        found = {"error": f"{error}. {hint}", "exit_code": error.exit_code}
    except GuieError as error:
        found = {"error": str(error), "exit_code": error.exit_code}
    with explain_os_errors(answer):
        answer.write_text(json.dumps(found))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except GuieError as error:  # a full disk, for one
        sys.exit(str(error).partition("\n")[0])
