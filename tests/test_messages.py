"""What a user reads when something is wrong, word for word, and the exit code."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import guie_emoji
from guie_core.cli import run_command
from guie_train.cli import train

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., tuple[int, str]]
DATA = Path(guie_emoji.__file__).parent / "data"


@pytest.fixture
def guie_train(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `guie-train` on the quickstart in an empty folder; gives the exit code and what went to stderr."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            run_command(train, "guie-train", ["experiments/quickstart.py", *arguments])
        return int(caught.value.code or 0), capsys.readouterr().err

    return run


def test_a_typo_in_set(guie_train: Run) -> None:
    code, message = guie_train("--set", "recipe.head.droput=0.2")
    assert code == 2
    assert message == (
        "error: 1 problem in experiments/quickstart.py\n"
        "  recipe.head.droput: BatchNormLinear (guie-models 0.1.0) has no argument 'droput'. Did you mean 'dropout'?\n"
        "  It takes: in_features, out_features, dropout, size_features.\n"
    )


def test_settings_of_the_loss_that_do_not_fit(guie_train: Run) -> None:
    code, message = guie_train(
        *("--set", "recipe.loss.margin=dict(start=.3, growth=.1, ending=.8)", "--set", "recipe.loss.softmax.focl=2.0")
    )
    assert code == 2
    assert message == (
        "error: 2 problems in experiments/quickstart.py\n"
        "  recipe.loss.margin.ending: margin has no setting 'ending'. Did you mean 'end'?\n"
        "  It takes: start, growth, end, every.\n"
        "  recipe.loss.softmax.focl: softmax has no setting 'focl'. Did you mean 'focal'?\n"
        "  It takes: label_smoothing, focal, sample, sparse, products, rows.\n"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["recipe.loss.margin=dict(start=.3, growth=.1, end=.8)", "recipe.loss.softmax.focal=2.0"],
        ["recipe.loss.margin=dict(least=.25, most=.5)", "recipe.loss.sub_centres=3"],
        ["recipe.loss.type=pml/ProxyAnchorLoss", "recipe.loss.alpha=16"],
    ],
)
def test_losses_that_fit(guie_train: Run, overrides: list[str]) -> None:
    code, message = guie_train("--dry-run", *(part for override in overrides for part in ("--set", override)))
    assert (code, message) == (0, "")


def test_a_margin_that_the_loss_refuses(guie_train: Run) -> None:
    code, message = guie_train("--set", "recipe.loss.margin=4.0")
    assert code == 2
    assert message.endswith(
        "error: 1 problem in experiments/quickstart.py\n"
        "  recipe.loss: ArcFace: margin is 4.0; it is an angle in radians, from 0 to below pi.\n"
    )
    assert "features" not in message


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("recipe.selection.metric=mPP@5", "recipe.selection.metric: metric 'mPP@5': 'mPP@k' is not among the metrics"),
        ("recipe.evaluation.metrics=['mP@5', 'Recal@1']", "recipe.evaluation.metrics.1: metric 'Recal@1': 'Recal@k'"),
        ("recipe.evaluation.metrics=[]", "recipe.evaluation.metrics: it names no figure"),
        ("recipe.evaluation.pca=-1", "recipe.evaluation.pca: it is -1"),
        ("recipe.selection.protocol=dict(type='FirstAgainstSecond', max_index=0)", "recipe.selection.protocol: First"),
        ("recipe.evaluation.protocol=dict(type='FirstAgainstSecond', seed=-1)", "recipe.evaluation.protocol: seed"),
        ("recipe.augmentation.crop=1.5", "recipe.augmentation: crop is 1.5; it is the part of each side that stays"),
        ("recipe.views.train=dict(type='RandomSquareCrop', area=(2, 1))", "recipe.views.train: area of a view is"),
        ("recipe.classifier.split_seed=-1", "recipe.classifier.split_seed: seed is -1"),
        ("recipe.seed=-1", "recipe.seed: seed is -1; it is a whole number from 0 to"),
        (
            "recipe.views.train.size=100000",
            "recipe.views.train: size of a view is 100,000; it is the side of the square",
        ),
        ("recipe.arcface.optimizer.rho=-1", "recipe.arcface.optimizer: SAM: rho is -1"),
        ("recipe.arcface.optimizer.base.lr=-1", "recipe.arcface.optimizer.base: AdamW (guie-models 0.1.0) refused its"),
        ("recipe.classifier.training.optimizer.lr=-1", "recipe.classifier.training.optimizer: AdamW ("),
        (
            "recipe.finetune=dict(training=dict(epochs=1, batch_size=8, optimizer=dict(type='AdamW', betas=(2, .9))))",
            "recipe.finetune.training.optimizer: AdamW (",
        ),
        ("recipe.max_bad=2", "recipe.max_bad: max_bad is 2.0; it is a share of the images, from 0 to 1"),
    ],
)
def test_what_would_be_refused_after_training_is_refused_before_anything(
    guie_train: Run, tmp_path: Path, override: str, told: str
) -> None:
    for options in ((), ("--dry-run",)):
        code, message = guie_train("--set", override, *options)
        assert code == 2
        assert message.startswith(f"error: 1 problem in experiments/quickstart.py\n  {told}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["recipe.selection.protocol.split=test"],
            "recipe.selection.protocol.split: 'test' is what recipe.evaluation.protocol.split reports on",
        ),
        (
            ["recipe.selection.protocol=dict(type='LeaveOneOut')"],  # whose default it is
            "recipe.selection.protocol.split: 'test' is what recipe.evaluation.protocol.split reports on",
        ),
        (
            ["recipe.evaluation.protocol.split=select"],
            "recipe.selection.protocol.split: 'select' is what recipe.evaluation.protocol.split reports on",
        ),
        (
            ["recipe.selection.protocol=dict(type='FirstAgainstSecond', distractor_splits=['train', 'test'])"],
            "recipe.selection.protocol.distractor_splits: 'test' is what recipe.evaluation.protocol.split reports on",
        ),
        (
            # of which distractors are, unless others are named
            ["recipe.selection.protocol=dict(type='FirstAgainstSecond')", "recipe.evaluation.protocol.split=valid"],
            "recipe.selection.protocol.distractor_splits: 'valid' is what recipe.evaluation.protocol.split reports on",
        ),
        (
            ["recipe.evaluation.protocol.split=train"],
            "recipe.evaluation.protocol.split: 'train' is what is trained on",
        ),
    ],
)
def test_no_choice_is_made_by_what_is_reported_on(guie_train: Run, overrides: list[str], told: str) -> None:
    code, message = guie_train("--dry-run", *(part for override in overrides for part in ("--set", override)))
    assert code == 2
    assert message.startswith(f"error: 1 problem in experiments/quickstart.py\n  {told}")


def test_a_plan_needs_no_data_where_the_backbone_is_tuned(guie_train: Run) -> None:
    tuning = "recipe.finetune=dict(training=dict(epochs=1, batch_size=8, optimizer=dict(type='AdamW', lr=1e-4)))"
    data = "recipe.data=[dict(type='folder', root='nope')]"
    assert guie_train("--dry-run", "--set", tuning, "--set", data)[0] == 0


VIEW = """
from guie_core import Entry, hookimpl
from guie_models.views import Squash

class Large(Squash):
    def __init__(self, size, mean, std):
        if size < 448:
            raise ValueError(f"size is {size}; it is 448 or more.")
        super().__init__(size, mean, std)

@hookimpl
def guie_views():
    return [Entry("Large", f"{__name__}:Large", "A view for large images")]
"""


def test_a_view_is_asked_for_the_size_of_its_backbone(guie_train: Run, tmp_path: Path) -> None:
    plugin = tmp_path / "large.py"
    plugin.write_text(VIEW)
    options = ["--plugin", str(plugin), "--set", "recipe.views.train=dict(type='Large')", "--dry-run"]
    backbone = "recipe.backbone=dict(type='timm/test_resnet', weights='none', image_size={})".format
    code, message = guie_train(*options, "--set", backbone(448))
    assert (code, message) == (0, "")
    code, message = guie_train(*options, "--set", backbone(256))
    assert code == 2
    assert "recipe.views.train: Large (large.py) refused its arguments: size is 256; it is 448 or more." in message


def test_the_nearest_name_of_a_metric_is_told(guie_train: Run) -> None:
    assert "Did you mean Recall@k" in guie_train("--set", "recipe.evaluation.metrics=['Recal@1']")[1]


def test_more_components_than_features(guie_train: Run) -> None:
    told = "error: recipe.evaluation.pca: 5000 dimensions of 1,280 features; lower it to 1280 at the most, or to 0"
    assert guie_train("--set", "recipe.evaluation.pca=5000", "--dry-run")[1].startswith(told)
    # a run says so as well, by the features that are there, before the head is trained
    small = [
        "recipe.backbone=dict(type='timm/test_resnet', weights='none', image_size=32)",
        "recipe.splits.0.classes=900",
    ]
    options = [part for each in small for part in ("--set", each)]
    assert guie_train(*options, "--stage", "features valid", "--work-dir", "runs/it")[0] == 0
    code, message = guie_train(*options, "--set", "recipe.evaluation.pca=5000", "--work-dir", "runs/other")
    assert code == 1
    assert "error: recipe.evaluation.pca: 5000 dimensions of" in message
    assert "head:" not in message


def test_limits_that_no_export_keeps(guie_train: Run) -> None:
    code, message = guie_train("--set", "recipe.exports=[dict(type='Onnx', min_cosine=2)]", "--dry-run")
    assert code == 2
    assert "recipe.exports.0: min_cosine is 2; it is from -1 to 1." in message


def test_exports_that_would_be_one_file(guie_train: Run) -> None:
    exports = ["type='Onnx'", "type='TorchScript'", "type='Onnx', min_cosine=.99", "type='Onnx', precision='int8'"]
    listed = ", ".join(f"dict({each})" for each in exports)
    for options in ((), ("--dry-run",)):
        code, message = guie_train("--set", f"recipe.exports=[{listed}]", *options)
        assert code == 2
        assert message.endswith(
            "error: 1 problem in experiments/quickstart.py\n"
            "  recipe.exports.2: it writes model.onnx, which recipe.exports.0 writes as well. Leave one of them out.\n"
        )
        assert "features" not in message


def test_no_data_set_at_all(guie_train: Run) -> None:
    code, message = guie_train("--set", "recipe.data=[]", "--dry-run")
    assert code == 2
    assert message == (
        "error: 1 problem in experiments/quickstart.py\n"
        "  recipe.data: it is empty; it names the data sets to train on.\n"
        '  For example: recipe.data=[dict(type="folder", root="pictures")], a folder of class folders.\n'
    )


def test_all_data_sets_left_out(guie_train: Run) -> None:
    code, message = guie_train("--set", "recipe.without=['emoji']", "--dry-run")
    assert code == 2
    assert "recipe.without: it leaves out every data set there is in recipe.data." in message


def test_a_plan_of_more_classes_to_hold_out_than_there_are(guie_train: Run) -> None:
    code, message = guie_train("--set", "recipe.splits.0.classes=2000", "--dry-run")
    assert code == 1
    assert "split 'test': 2,000 classes are to be held out, but there are 1034. Set " in message


def test_a_category_that_no_data_set_has(guie_train: Run) -> None:
    code, message = guie_train("--set", "recipe.augmentation.padded_for=['Objekts']", "--dry-run")
    assert code == 2
    assert message == (
        "error: 1 problem in experiments/quickstart.py\n"
        "  recipe.augmentation.padded_for: there is no category 'Objekts'. Did you mean 'Objects'?\n"
        "  The images have: Activities, Animals & Nature, Food & Drink, Objects, People & Body, Smileys & Emotion, "
        "Symbols, Travel & Places.\n"
    )


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("recipe.evaluation.protocol.split=tset", "recipe.evaluation.protocol: no image is in split 'tset'"),
        ("recipe.augmentation.padded_for=['Objekts']", "padded_for: there is no category 'Objekts'. Did you mean"),
        ("recipe.arcface.batch_size=100000", "recipe.arcface: "),
    ],
)
def test_a_plan_of_data_that_are_prepared_is_checked_as_a_run_is(guie_train: Run, override: str, told: str) -> None:
    assert guie_train("--stage", "split", "--work-dir", "runs/it")[0] == 0
    code, message = guie_train("--set", override, "--dry-run", "--work-dir", "runs/it")
    assert code in (1, 2)
    assert told in message


def test_several_mistakes_are_all_told(guie_train: Run) -> None:
    code, message = guie_train(
        "--set", "recipe.arcface.epochs='many'", "--set", "recipe.loss.type=ArcFase", "--profile", "cpux"
    )
    assert code == 2
    assert message.startswith("error: 3 problems in experiments/quickstart.py\n")
    assert "recipe.arcface.epochs: expects a whole number, got the text 'many'." in message
    assert "Did you mean ArcFace" in message
    assert "cpux" in message
    assert "cpu" in message


def test_a_typo_in_the_experiment_itself(guie_train: Run, tmp_path: Path) -> None:
    path = tmp_path / "experiments" / "quickstart.py"
    path.write_text(path.read_text().replace("arcface=dict(epochs=40", "arcfase=dict(epochs=40"))
    code, message = guie_train()
    assert code == 2
    assert "recipe.arcfase" in message
    assert "Did you mean 'arcface'?" in message


def test_no_data(guie_train: Run, tmp_path: Path) -> None:
    code, message = guie_train("--set", "recipe.data.0.root='nowhere'")
    assert code == 1
    assert message == "error: nowhere: no such folder. Name the folder that holds the files guie-emoji-train-*.tfrec\n"


def test_half_the_data(guie_train: Run, tmp_path: Path) -> None:
    shutil.copytree(DATA, tmp_path / "half")
    for shard in sorted((tmp_path / "half").glob("*.tfrec"))[4:]:
        shard.unlink()
    code, message = guie_train("--set", "recipe.data.0.root='half'")
    assert code == 1
    assert "3,104 images" in message
    assert "6,204" in message


def test_a_truncated_shard(guie_train: Run, tmp_path: Path) -> None:
    shutil.copytree(DATA, tmp_path / "cut")
    shard = sorted((tmp_path / "cut").glob("*.tfrec"))[2]
    shard.write_bytes(shard.read_bytes()[:-1000])
    code, message = guie_train("--set", "recipe.data.0.root='cut'")
    assert code == 1
    assert shard.name in message


def test_a_gpu_profile_without_a_gpu(guie_train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, message = guie_train("--profile", "v100-32g")
    assert code == 1
    assert "profile v100-32g needs a CUDA GPU" in message
    assert "--profile cpu" in message


def test_more_classes_to_hold_out_than_there_are(guie_train: Run) -> None:
    code, message = guie_train("--set", "recipe.splits.0.classes=2000")
    assert code == 1
    assert "2,000 classes are to be held out, but there are 1034" in message


def test_an_unknown_stage_names_all(guie_train: Run) -> None:
    code, message = guie_train("--stage", "heads")
    assert code == 2
    assert "no stage 'heads'" in message
    assert "'head'" in message


def test_a_missing_experiment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        run_command(train, "guie-train", ["experiments/quikstart.py"])
    assert caught.value.code == 2
    assert "Did you mean 'quickstart.py'?" in capsys.readouterr().err
