"""The experiment of docs/how-to/fine-tune.md, as it stands there: checked, and its stages in order."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from guie_core import build
from guie_core.experiment import Experiment

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "how-to" / "fine-tune.md").read_text()


def test_the_pages_experiment(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    path = tmp_path / "experiments" / "tuned.py"
    path.write_text(block)
    experiment = Experiment.load(path)
    stages = build("recipes", experiment.recipe, where="recipe").stages(experiment.profile)
    names = [stage.name for stage in stages]
    tuned = stages[names.index("finetune")]
    assert [stage.name for stage in tuned.inputs()] == ["split", "features valid", "head"]
    # what comes later works with the tuned backbone
    later = [stage for stage in stages[names.index("finetune") + 1 :] if stage.slug == "features"]
    assert len(later) > 1
    assert all(tuned in stage.inputs() for stage in later)
    assert tuned in stages[names.index("evaluate")].inputs()
    assert tuned in stages[names.index("export")].inputs()
    # and what comes before is the quickstart's own
    plain = Experiment.load(ROOT / "experiments" / "quickstart.py")
    before = build("recipes", plain.recipe, where="recipe").stages(plain.profile)
    keys = {stage.name: stage.key for stage in before}
    for name in names[: names.index("finetune")]:
        assert stages[names.index(name)].key == keys[name], name


def test_the_pages_settings_exist() -> None:
    from dataclasses import fields

    from guie_train.stages.finetune import FineTuning

    table = PAGE.partition("## Settings")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)", " ".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE))))
    assert named == {field.name for field in fields(FineTuning)} - {"blocks", "compute"}  # which stand elsewhere
    assert "`blocks`" in PAGE
    assert "recipe.finetune.compute" in PAGE
