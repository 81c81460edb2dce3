# ruff: noqa: E501 -- messages and code are quoted whole
from __future__ import annotations

import copy
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guie_core import Experiment, ExperimentError, Problem, UsageError
from guie_core.experiment import apply_override, differences

HEAD = "from mmengine.config import read_base\nwith read_base():\n    from ._base_.toy import recipe\n"


def write(folder: Path, text: str, name: str = "5th_place.py") -> str:
    folder.joinpath(name).write_text(text)
    return f"experiments/{name}"


def message(folder: Path, text: str, *overrides: str, **options: Any) -> str:
    path = write(folder, text)
    with pytest.raises(ExperimentError) as error:
        Experiment.load(path, overrides, **options)
    return str(error.value)


def test_experiment_is_loaded_with_its_base(toys: Any, experiments: Path) -> None:
    text = '"""The recipe.\n\nMore.\n"""\n' + HEAD + "recipe.update(arcface=dict(epochs=30))\nprofile = 'cpu'\n"
    found = Experiment.load(write(experiments, text))
    assert (found.name, found.doc) == ("5th_place", "The recipe.\n\nMore.")
    assert found.recipe["arcface"] == {
        "epochs": 30,
        "optimizer": {"type": "SAM", "base": {"type": "AdamW", "lr": 0.01}},
    }
    assert found.profile.name == "cpu"
    assert found.resolved["recipe"] == found.recipe
    assert found.resolved["profile"]["dtype"] == "float32"
    assert json.loads(json.dumps(found.resolved)) == found.resolved
    assert type(found.recipe) is dict
    assert type(found.recipe["arcface"]) is dict


@pytest.mark.parametrize("text", ["[2021] photos", "{a", "'90s", "photos (1"])
def test_text_that_is_no_python(toys: Any, experiments: Path, text: str) -> None:
    """Brackets within a name are no mistake; one that is open at its start is."""
    path, values = write(experiments, HEAD), [f"recipe.weights={text}"]
    if text == "{a":
        with pytest.raises(ExperimentError, match="was never closed"):
            Experiment.load(path, values, profile="cpu")
        values = [f'recipe.weights="{text}"']
    with pytest.raises(ExperimentError, match=re.escape(f"got the text {text!r}")):
        Experiment.load(path, values, profile="cpu")


def test_another_type_starts_from_its_own_defaults(toys: Any, experiments: Path) -> None:
    text = HEAD + (
        "recipe.update(head=dict(type='Linear'), arcface=dict(optimizer=dict(base=dict(lr=1))),\n"
        "              backbone=dict(type='timm/resnet18', image_size=64))\n"
    )
    recipe = Experiment.load(write(experiments, text), profile="cpu").recipe
    assert recipe["head"] == {"type": "Linear"}  # dropout and out_features were for BatchNormLinear
    assert recipe["arcface"]["optimizer"] == {"type": "SAM", "base": {"type": "AdamW", "lr": 1}}
    assert recipe["backbone"] == {"type": "timm/resnet18", "weights": "none", "image_size": 64}  # the same type


def test_settings_can_be_started_afresh(toys: Any, experiments: Path) -> None:
    text = HEAD + "recipe.update(head=dict(_delete_=True, type='BatchNormLinear'))\n"
    assert Experiment.load(write(experiments, text), profile="cpu").recipe["head"] == {"type": "BatchNormLinear"}
    text = HEAD + "recipe.merge(dict(head=dict(type='Linear')))\nrecipe.head.out_features = 3\n"
    recipe = Experiment.load(write(experiments, text), profile="cpu").recipe
    assert recipe["head"] == {"type": "Linear", "out_features": 3}


def test_private_names_and_standard_imports_are_allowed(toys: Any, experiments: Path) -> None:
    text = (
        "from __future__ import annotations\nimport math\nfrom pathlib import Path\n"
        + HEAD
        + ("_epochs = int(math.pi)\nrecipe.update(arcface=dict(epochs=_epochs), cache=Path('a') / 'b')\n")
    )
    found = Experiment.load(write(experiments, text), profile="cpu")
    assert found.recipe["arcface"]["epochs"] == 3
    assert found.recipe["cache"] == "a/b"


def test_digest_is_that_of_the_recipe(toys: Any, experiments: Path) -> None:
    one = Experiment.load(write(experiments, HEAD + "profile = 'cpu'\n"))
    assert Experiment.load(write(experiments, HEAD, "other.py"), profile="v100-32g").digest == one.digest
    assert Experiment.load(write(experiments, HEAD), ["recipe.seed=1"], profile="cpu").digest != one.digest
    ordered = Experiment.load(write(experiments, HEAD), ["recipe.seed=1", "recipe.mode=exact"], profile="cpu").digest
    swapped = Experiment.load(write(experiments, HEAD), ["recipe.mode=exact", "recipe.seed=1"], profile="cpu").digest
    assert ordered == swapped


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("recipe.arcface.epochs=3", ("arcface", "epochs"), 3),
        ("recipe.arcface.optimizer.base.lr=1e-3", ("arcface", "optimizer", "base", "lr"), 1e-3),
        ("recipe.backbone.weights=file:a=b.pt", ("backbone", "weights"), "file:a=b.pt"),
        ("recipe.backbone.weights='7'", ("backbone", "weights"), "7"),
        ("recipe.groups=('a', 'b')", ("groups",), ["a", "b"]),
        ("recipe.groups=a-1,b", ("groups",), ["a-1", "b"]),
        ("recipe.groups=[a, 'b']", ("groups",), ["a", "b"]),
        ("recipe.verify=False", ("verify",), False),
        ("recipe.backbone.image_size=None", ("backbone", "image_size"), None),
        ("recipe.head=dict(type='Linear', out_features=8)", ("head",), {"type": "Linear", "out_features": 8}),
        ("recipe.head={'type': 'Linear'}", ("head",), {"type": "Linear"}),
        ("recipe.head.type=Linear", ("head",), {"type": "Linear"}),
        ("recipe.loss.margin=0.3", ("loss",), {"margin": 0.3}),  # which loss: the recipe's own default
        ("recipe.classifier.epochs=4", ("classifier", "epochs"), 4),
        ("recipe.extra_heads.0.out_features=7", ("extra_heads", 0, "out_features"), 7),
        ("recipe.pair.1=2", ("pair", 1), 2),
    ],
)
def test_overrides(toys: Any, experiments: Path, override: str, keys: tuple[str | int, ...], value: object) -> None:
    text = HEAD + "recipe.update(extra_heads=[dict(type='Linear')], pair=(3, 4))\n"
    value_found: Any = Experiment.load(write(experiments, text), [override], profile="cpu").recipe
    for key in keys:
        value_found = value_found[key]
    assert value_found == value
    assert type(value_found) is type(value)


def test_profile_can_be_overridden(toys: Any, experiments: Path) -> None:
    path = write(experiments, HEAD + "profile = 'cpu'\n")
    assert Experiment.load(path, ["profile=v100-32g"]).profile.name == "v100-32g"
    assert Experiment.load(path, ["profile.workers=7"]).profile.workers == 7
    assert Experiment.load(path, ["profile=v100-32g"], profile="t4-16g").profile.name == "t4-16g"
    settings = ["profile.workers=7", "profile.batch.features=5"]
    for overrides in (settings, ["profile={'type': 'v100-32g', 'workers': 7, 'batch': {'features': 5}}"]):
        found = Experiment.load(path, overrides, profile="t4-16g").profile
        assert (found.name, found.workers, found.batch["features"]) == ("t4-16g", 7, 5)
    assert Experiment.load(path, settings, profile={"type": "t4-16g", "workers": 3}).profile.workers == 7
    with pytest.raises(ExperimentError, match=r"profile\.bacth: t4-16g has no setting 'bacth'"):
        Experiment.load(path, ["profile.bacth.features=5"], profile="t4-16g")
    path = write(experiments, HEAD + "profile = dict(type='cpu', batch=dict(features=3))\n")
    assert Experiment.load(path, profile="t4-16g").profile.batch["features"] == 256  # the file's are for its own
    assert dict(Experiment.load(path).profile.batch) == {"features": 3, "finetune": 4}


def test_the_mistake_of_the_manual(toys: Any, experiments: Path) -> None:
    assert message(experiments, HEAD, "recipe.head.droput=0.2", profile="cpu") == (
        "1 problem in experiments/5th_place.py\n"
        "  recipe.head.droput: BatchNormLinear (guie-models 0.1.0) has no argument 'droput'. Did you mean 'dropout'?\n"
        "  It takes: in_features, out_features, dropout, size_features."
    )


def test_all_mistakes_at_once(toys: Any, experiments: Path) -> None:
    text = HEAD + (
        "recipe.update(arcface=dict(epoch=30), head=dict(type='BatchNormLinaer'), groups='Objects', pair=[1],\n"
        "              backbone=dict(image_size='128'), hed=1, named=dict(a=dict(type='Linear', in_features=3)))\n"
    )
    assert message(experiments, text, "recipe.mode=fats", "receipt.seed=1", profile="rtx3091") == (
        "10 problems in experiments/5th_place.py\n"
        "  receipt.seed: --set can change what is below recipe or profile. Did you mean 'recipe'?\n"
        "  profile: 'rtx3091' is not among the profiles. Did you mean rtx3090-24g (guie-core 0.1.0)?\n"
        "  Profiles: auto, cpu, v100-32g, rtx3090-24g, rtx4090-24g, a100-80g, h100-80g, t4-16g, p100-16g.\n"
        "  recipe.backbone.image_size: expects a whole number or None, got the text '128'.\n"
        "  recipe.head.type: 'BatchNormLinaer' is not among the heads. Did you mean BatchNormLinear (guie-models 0.1.0)?\n"
        "  recipe.arcface.epoch: arcface has no setting 'epoch'. Did you mean 'epochs'?\n"
        "  It takes: epochs, optimizer.\n"
        "  recipe.groups: expects a list, each text, got the text 'Objects'. Write ['Objects'] for a list of one.\n"
        "  recipe.pair: expects a list of 2 (a whole number, a number), got [1].\n"
        "  recipe.hed: Toy (guie-train 0.1.0) has no argument 'hed'. Did you mean 'head'?\n"
        "  It takes: backbone, head, loss, arcface, classifier, extra_heads, named, mode, groups, pair, cache, weights, "
        "seed, verify.\n"
        "  recipe.named.a.in_features: Linear (guie-models 0.1.0) gets 'in_features' from what holds it; an experiment "
        "cannot set it.\n"
        "  recipe.mode: expects 'fast' or 'exact', got the text 'fats'. Did you mean 'fast'?"
    )


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("recipe.seed", "--set 'recipe.seed' is not of the form key=value.\n  For example: --set recipe.seed=3"),
        ("recipe..seed=1", "--set 'recipe..seed=1' is not of the form key=value.\n  For example: --set recipe.seed=3"),
        ("recipe.seed.more=1", "recipe.seed.more: --set: recipe.seed is the number 3, which has no parts to set."),
        ("recipe.extra_heads.1.x=1", "recipe.extra_heads.1: --set: recipe.extra_heads is a list and has no '1': "
         "its elements are 0 to 0."),
        ("recipe.extra_heads.a=1", "recipe.extra_heads.a: --set: recipe.extra_heads is a list and has no 'a': "
         "its elements are 0 to 0."),
        ("recipe.groups.0=x", "recipe.groups.0: --set: recipe.groups is a list and has no '0': it is empty."),
        ("recipe.arcface.epochs=three", "recipe.arcface.epochs: expects a whole number, got the text 'three'."),
        ("recipe.verify=false", "recipe.verify: expects True or False, got the text 'false'. Write False, without quotes."),
        ("recipe.arcface.epochs=0", "recipe.arcface: epochs must be positive"),
        ("recipe.weights=[1e999]", "recipe.weights.0: expects a finite number, got inf."),
        ("recipe.head=Linear", "recipe.head: expects dict(type=...) of kind heads, got the text 'Linear'.\n"
         "  Write dict(type='Linear')."),
        ("recipe=3", "recipe: expects dict(type=...) of kind recipes, got the number 3."),
        ("recipe.head=dict(type='Linear'", "recipe.head: --set: dict(type='Linear' is not Python: '(' was never closed.\n"
         "  Close the bracket; what is meant as text goes into quotes."),
        ("recipe.head=dict(type='Linear' x=1)", "recipe.head: --set: dict(type='Linear' x=1) is not Python: invalid "
         "syntax. Perhaps you forgot a comma?\n"
         "  Mend it; what is meant as text goes into quotes."),
        ("recipe.weights=[1, 2", "recipe.weights: --set: [1, 2 is not Python: '[' was never closed.\n"
         "  Close the bracket; what is meant as text goes into quotes."),
    ],
)  # fmt: skip
def test_override_that_does_not_fit(toys: Any, experiments: Path, override: str, problem: str) -> None:
    text = HEAD + "recipe.update(extra_heads=[dict(type='Linear')], seed=3, groups=[])\n"
    assert message(experiments, text, override, profile="cpu") == f"1 problem in experiments/5th_place.py\n  {problem}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "recipe = dict(a=1 b=2)\n",
            "experiments/5th_place.py:1: invalid syntax. Perhaps you forgot a comma?\n  recipe = dict(a=1 b=2)",
        ),
        ("recipe = dict(\n", "experiments/5th_place.py:1: '(' was never closed.\n  recipe = dict("),
        ("profile = 'cpu'\n", 'it names no recipe.\n  Write recipe = dict(type="...", ...).'),
        (
            "recipe = 'Toy'\n",
            "recipe: expects dict(type=...) of kind recipes, got the text 'Toy'.\n  Write dict(type='Toy').",
        ),
        (
            HEAD + "recipee = recipe\n",
            "recipee: is not a key of an experiment (line 4). Did you mean 'recipe'?\n"
            "  Keys: recipe, profile. A name for use within the file begins with _.",
        ),
        (HEAD + "recipe.update(seed=1 / 0)\n", "experiments/5th_place.py:4: ZeroDivisionError: division by zero"),
        (
            HEAD + "\nrecipe.haed.dropout = 3\n",
            "experiments/5th_place.py:5: there are no settings 'haed' here. Did you mean 'head'?",
        ),
        (HEAD + "x.update()\n", "experiments/5th_place.py:4: NameError: name 'x' is not defined"),
        (
            HEAD.replace("toy", "tov"),
            "experiments/5th_place.py:3: there is no file experiments/_base_/tov.py, which it takes pieces from. "
            "Did you mean 'toy'?",
        ),
        (
            HEAD.replace("import recipe", "import receipe"),
            "experiments/5th_place.py:3: experiments/_base_/toy.py has no 'receipe'. Did you mean 'recipe'?",
        ),
        (
            HEAD.replace("._base_.toy", "guie_train.bases"),
            "experiments/5th_place.py:3: 'guie_train.bases' is imported absolutely; experiments import each other "
            "relatively.\n  Write:  with read_base():\n              from ._base_.toy import recipe",
        ),
        (
            "from ._base_.toy import recipe\n",
            "experiments/5th_place.py:1: pieces of another experiment are imported within 'with read_base():'.\n"
            "  Write:  with read_base():\n              from ._base_.toy import recipe",
        ),
        (
            HEAD + "with open('x') as file:\n    pass\n",
            "experiments/5th_place.py:4: the only 'with' that an experiment can have is read_base().\n"
            "  Write:  with read_base():\n              from ._base_.toy import recipe",
        ),
        (
            HEAD + "from toy_parts import Linear\nrecipe.update(head=dict(type=Linear))\n",
            "recipe.head.type: is Linear imported from toy_parts; an experiment names components by text.\n"
            "  guie plugins list shows the names.",
        ),
        (
            HEAD + "recipe.update(seed={1, 2})\n",
            "recipe.seed: is a set; an experiment holds settings, lists, text, numbers, True, False and None only.",
        ),
        (HEAD + "recipe.update(weights=[float('nan')])\n", "recipe.weights.0: expects a finite number, got nan."),
    ],
)
def test_file_with_a_mistake(toys: Any, experiments: Path, text: str, problem: str) -> None:
    found = message(experiments, text, profile="cpu").replace("._base_.fifth_place", "._base_.toy")
    assert found == f"1 problem in experiments/5th_place.py\n  {problem}"


def test_mistake_in_the_base(toys: Any, experiments: Path) -> None:
    experiments.joinpath("_base_", "broken.py").write_text("recipe = dict(type='Toy')\n\nrecipe.update(a=1 / 0)\n")
    found = message(experiments, HEAD.replace("toy", "broken"), profile="cpu")
    assert found == (
        "1 problem in experiments/5th_place.py\n  experiments/_base_/broken.py:3: ZeroDivisionError: division by zero"
    )
    experiments.joinpath("_base_", "broken.py").write_text("recipe = dict(\n")
    found = message(experiments, HEAD.replace("toy", "broken"), profile="cpu")
    assert found == (
        "1 problem in experiments/5th_place.py\n"
        "  experiments/_base_/broken.py:1: '(' was never closed.\n  recipe = dict("
    )


def test_base_that_takes_from_itself(toys: Any, experiments: Path) -> None:
    text = "from mmengine.config import read_base\nwith read_base():\n    from ..round import recipe\n"
    experiments.joinpath("_base_", "round.py").write_text(text)
    write(experiments, HEAD.replace("toy", "round"), "round.py")
    with pytest.raises(ExperimentError, match=r"experiments/_base_/round.py:3: .*/round.py takes pieces from itself"):
        Experiment.load("experiments/round.py")


def test_base_of_a_base(toys: Any, experiments: Path) -> None:
    text = "from mmengine.config import read_base\nwith read_base():\n    from .toy import *\nrecipe.update(seed=7)\n"
    experiments.joinpath("_base_", "middle.py").write_text(text)
    found = Experiment.load(write(experiments, HEAD.replace("toy", "middle")), profile="cpu")
    assert (found.recipe["seed"], found.recipe["head"]["dropout"]) == (7, 0.1)


def test_file_that_is_not_there(toys: Any, experiments: Path) -> None:
    write(experiments, HEAD)
    for path, text in {
        "experiments/5th_plaec.py": "there is no experiment experiments/5th_plaec.py. Did you mean '5th_place.py'?",
        "experiments/nope.py": "there is no experiment experiments/nope.py. There are 5th_place.py.",
        "experiments/5th_place": "there is no experiment experiments/5th_place. Did you mean '5th_place.py'?",
        "5th_place": "there is no experiment 5th_place. Did you mean 'experiments/5th_place.py'?",
        "nope": "there is no experiment nope. There are experiments/5th_place.py.",
        "nowhere/x.py": "there is no experiment nowhere/x.py.",
        "experiments": "experiments is a folder; name one of its experiments: 5th_place.py.",
    }.items():
        with pytest.raises(UsageError) as error:
            Experiment.load(path)
        assert str(error.value) == text
    experiments.joinpath("notes.txt").write_text("x")
    with pytest.raises(UsageError, match="is not an experiment: an experiment is a Python file"):
        Experiment.load("experiments/notes.txt")


def test_unknown_recipe(toys: Any, experiments: Path) -> None:
    assert message(experiments, HEAD, "recipe.type=ArcFaceThenClasifier", profile="cpu") == (
        "1 problem in experiments/5th_place.py\n"
        "  recipe.type: 'ArcFaceThenClasifier' is not among the recipes.\n"
        "  There are: Toy (guie-train 0.1.0)."
    )


def test_loading_leaves_nothing_behind(
    toys: Any, experiments: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from mmengine.config import ConfigDict

    write(experiments, HEAD)
    before = sorted(str(path) for path in experiments.rglob("*"))
    with caplog.at_level(logging.DEBUG):
        Experiment.load("experiments/5th_place.py", profile="cpu")
        message(experiments, HEAD + "1 / 0\n")
    assert sorted(str(path) for path in experiments.rglob("*")) == before
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert ConfigDict.lazy is False
    import mmengine.config.config as module

    assert module.ConfigDict is ConfigDict
    kept = ConfigDict(head={"type": "a", "x": 1})
    kept.update(head={"type": "b"})
    assert kept["head"]["x"] == 1  # mmengine itself is as it was


def test_digest_is_stable_and_core_imports_no_torch(toys: Any, experiments: Path) -> None:
    write(experiments, HEAD)
    code = (
        "import sys, importlib.metadata as m\n"
        f"m.DistributionFinder.Context.path = property(lambda self: [{str(toys.path)!r}])\n"
        "from guie_core import Experiment\n"
        "print(Experiment.load('experiments/5th_place.py', profile='cpu').digest, 'torch' in sys.modules)"
    )
    outputs = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{toys.path}:{':'.join(sys.path)}"}
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        outputs.add(result.stdout)
    digest = Experiment.load("experiments/5th_place.py", profile="cpu").digest
    assert outputs == {f"{digest} False\n"}


def test_differences_key_by_key() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "gone": None}
    new = {"a": 1.0, "b": {"c": [1, 3], "d": "x"}, "new": True}
    assert differences(old, new) == [
        ("recipe.a", "1", "1.0"),
        ("recipe.b.c.1", "2", "3"),
        ("recipe.gone", "None", "-"),
        ("recipe.new", "-", "True"),
    ]
    assert differences(old, old) == []
    assert differences([1], [1, 2]) == [("recipe.1", "-", "2")]
    assert differences({"a": 1, "b": 2}, {"a": 1}, {"a": 3, "b": 2}, where="x") == [
        ("x.a", "1", "1", "3"),
        ("x.b", "2", "-", "2"),
    ]


@pytest.mark.parametrize(
    ("values", "example"),
    [
        ({"folder": {"type": "folder", "root": "my photos"}}, "'folder.root=my photos'"),
        ({"a": {"type": "x", "parts": [{"type": "y"}, {"type": "z", "on": True}]}}, "a.parts.1.on=True"),
        ({"a": {"type": "x", "names": ["b"]}}, "a.names.0=b"),
        ({"a": {"type": "x", "part": {"type": "y", "size": None}}}, "a.part.size=None"),
        ({"gpr1200": {"type": "gpr1200"}}, "gpr1200.NAME=VALUE"),
    ],
)
def test_the_example_of_an_override_is_one(values: dict[str, Any], example: str) -> None:
    problems: list[Problem] = []
    before = copy.deepcopy(values)
    apply_override(values, "nonsense", problems, list(values))
    assert [problem.hint for problem in problems] == [f"For example: --set {example}"]
    assert values == before
    if "VALUE" not in example:
        apply_override(values, *shlex.split(example), problems, list(values))
        assert (values, len(problems)) == (before, 1)
