"""``guie features``: features of images ahead of training, what a store of them holds, and whether it is whole."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from guie_core import GuieError, Interrupted, UsageError
from guie_core.tables import table
from guie_core.wording import did_you_mean, listing, plural, shown, size

if TYPE_CHECKING:
    from guie_core.interrupt import Stop
    from guie_train.feature_store import FeatureStore
    from guie_train.stage import Workspace
    from guie_train.stages.features import Features

Command = TypeVar("Command", bound=Callable[..., Any])
_SHOWN = 10


@click.group()
def features() -> None:
    """Compute features of images ahead of training, look at stores of them, and exchange them as NumPy files."""


def _experiment_options(command: Command) -> Command:
    for option in (
        click.option(
            "--work-dir",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="The run's folder, beside which the stores are; runs/EXPERIMENT by default.",
        ),
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As for guie-train; may be repeated."
        ),
        click.option("--profile", metavar="NAME", help="What to run on; `guie profiles list` shows them."),
    ):
        command = option(command)
    return command


@features.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option("--stage", "names", multiple=True, metavar="NAME", help="Only these features; may be repeated.")
@click.option(
    "--share", metavar="I/N", help="Compute the I-th of N parts of the images: for N processes that run at once."
)
@_experiment_options
def build(
    experiment: Path,
    names: tuple[str, ...],
    share: str | None,
    profile: str | None,
    overrides: tuple[str, ...],
    work_dir: Path | None,
) -> None:
    """Compute the features of EXPERIMENT ahead.

    They are what it trains and evaluates on; guie-train then finds them there. Only images that a store lacks are
    computed. Ctrl-C stops after the current batch, and the same command goes on. N processes, on one machine or on
    several that share the folder, compute a part each:

    \b
    guie features build experiments/5th_place.py --share 1/2 &
    guie features build experiments/5th_place.py --share 2/2
    """
    from guie_core.interrupt import interruptible

    number, count = _share(share)
    with interruptible() as stop:
        loaded = _Loaded.of(experiment, profile, overrides, work_dir, stop, wait=count > 1)
        workspace = loaded.workspace
        stages = [loaded.stage(name) for name in names] or loaded.stages
        workspace.stages = stages
        for stage in stages:
            for source in stage.inputs():
                workspace.get(source)
            stage.check(workspace)
            try:
                if count > 1:
                    with workspace.sharing(stage) as folder:
                        stage.add(folder, workspace, number, count)
                    if not stage.has_all(folder, workspace):
                        click.echo(f"{stage.name}: part {share} is done, others are not yet")
                        continue
                store = workspace.get(stage)
            except Interrupted as stopped:
                raise Interrupted(f"{stopped}; the same command goes on") from None
            click.echo(f"{stage.name}: {stage.summary(store)}: {shown(workspace.folder(stage))}")


def _share(text: str | None) -> tuple[int, int]:
    """(0, 1) of "1/1" or None."""
    number, _, count = (text or "1/1").partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise UsageError(f"--share {text}: it is two numbers, such as 1/4 for the first of four parts")
    if not 1 <= int(number) <= int(count):
        parts = f"there are parts 1/{count} to {count}/{count}" if int(count) > 1 else "there is one part, 1/1"
        raise UsageError(f"--share {text}: {parts}")
    return int(number) - 1, int(count)


@features.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option(
    "--experiment",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Say also which of its stages use them, and how many of the images.",
)
@_experiment_options
def info(
    folder: Path,
    style: str,
    experiment: Path | None,
    profile: str | None,
    overrides: tuple[str, ...],
    work_dir: Path | None,
) -> None:
    """Say what made the features in FOLDER.

    FOLDER is a store of features, a run that has some, or runs/store, where all are. Told is also how many there are,
    what they take, and which runs have used them. --set, --profile and --work-dir are of --experiment.
    """
    from guie_core.interrupt import Stop

    if experiment is None and (profile or overrides or work_dir):
        raise UsageError("--set, --profile and --work-dir go with --experiment.")
    stores = _stores(folder, "info")
    found = [_about(store) for store in stores]
    if experiment is not None:
        loaded = _Loaded.of(experiment, profile, overrides, work_dir, Stop(), compute=False)
        for store, about in zip(stores, found, strict=True):
            about["uses"] = loaded.uses(store)
    if style == "json":
        click.echo(json.dumps(found, indent=2))
        return
    for number, about in enumerate(found):
        click.echo(("\n" if number else "") + table(_in_words(about, experiment)))


@features.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--repair", is_flag=True, help="Let go of what is damaged; the next run computes it again.")
@click.pass_context
def verify(ctx: click.Context, folder: Path, repair: bool) -> None:
    """Check the features in FOLDER for damage.

    FOLDER is a store of features, a run that has some, or runs/store, where all are; all rows are compared with their
    checksums. The exit code is 1 if anything is damaged, unless it is repaired.
    """
    from guie_core.progress import bar

    damaged = False
    for store in _stores(folder, "verify"):
        with bar(None, "verify", unit="row") as progress:
            found = store.verify(progress.advance)
        for each in found[:_SHOWN]:
            click.echo(f"  {shown(each.file)}: {each.reason}")
        if len(found) > _SHOWN:
            click.echo(f"  and {len(found) - _SHOWN:,} more")
        if found and repair:
            store.forget(found)
            click.echo(f"{shown(store.folder)}: let go of what is damaged; {plural(len(store), 'image')} are left")
        elif found:
            damaged = True
            click.echo(
                f"{shown(store.folder)} is damaged; --repair lets go of that, and the next run computes it again"
            )
        else:
            click.echo(f"{shown(store.folder)}: {plural(len(store), 'image')}, nothing is wrong.")
    if damaged:
        ctx.exit(1)


_pairs_arguments = [
    click.argument("experiment", type=click.Path(path_type=Path)),
    click.argument("stage"),
    click.argument("folder", type=click.Path(path_type=Path)),
    click.option("--split", metavar="NAME", help="Only the stage's images of this split, such as train."),
]


def _pairs_options(command: Command) -> Command:
    for add in reversed(_pairs_arguments):
        command = add(command)
    return command


@features.command("export")
@_pairs_options
@click.option("--sizes", is_flag=True, help="Append the three size values, as the original's head takes them.")
@click.option("--view", type=click.IntRange(0), default=0, show_default=True, help="Which of several views.")
@_experiment_options
def export_(
    experiment: Path,
    stage: str,
    folder: Path,
    split: str | None,
    sizes: bool,
    view: int,
    profile: str | None,
    overrides: tuple[str, ...],
    work_dir: Path | None,
) -> None:
    """Write features as NumPy files.

    Those of EXPERIMENT's STAGE, such as train, go to FOLDER as the 5th place's code has them: emb_0.npy is float32
    [n, D], label_0.npy int64 [n] with labels 0..C-1, in the order of the manifest; a pair has up to 250,000 rows.
    Features that are not there yet are computed.

    \b
    guie features export experiments/5th_place.py train embs/train --split train --sizes
    """
    from guie_core.files import folder_option
    from guie_core.interrupt import interruptible
    from guie_train.pairs import export_pairs

    with interruptible() as stop, folder_option("FOLDER"):
        loaded = _Loaded.of(experiment, profile, overrides, work_dir, stop)
        count = export_pairs(loaded.stage(stage), loaded.workspace, folder, split=split, sizes=sizes, view=view)
    click.echo(f"{shown(folder)}: features of {plural(count, 'image')}")


@features.command("import")
@_pairs_options
@click.option("--check", type=click.IntRange(0), default=8, show_default=True, help="Images to compute and compare.")
@click.option(
    "--min-cosine", type=click.FloatRange(-1, 1), help="How like they must be [default: .99, or .9 of crops]."
)
@_experiment_options
def import_(
    experiment: Path,
    stage: str,
    folder: Path,
    split: str | None,
    check: int,
    min_cosine: float | None,
    profile: str | None,
    overrides: tuple[str, ...],
    work_dir: Path | None,
) -> None:
    """Add features from NumPy files.

    Those in FOLDER, as the 5th place's code has them, become features of EXPERIMENT's STAGE, such as train. The rows
    must be those of the manifest's images, in its order. What can show that they are not is looked at first:
    how many there are, which share a label, their size values, and a few images that are computed and compared.

    \b
    guie features import experiments/5th_place.py train embs/train --split train
    """
    from guie_core.interrupt import interruptible
    from guie_train.pairs import import_pairs

    with interruptible() as stop:
        loaded = _Loaded.of(experiment, profile, overrides, work_dir, stop)
        done = import_pairs(
            loaded.stage(stage), loaded.workspace, folder, split=split, check=check, min_cosine=min_cosine
        )
    alike = "" if done.cosine is None else f"; those computed here have a cosine of {done.cosine:.4f} at least"
    click.echo(f"{shown(folder)}: features of {plural(done.images, 'image')}, {done.new:,} of them new{alike}")


@dataclass(frozen=True)
class _Loaded:
    """An experiment's stages of features, and where their outputs are."""

    experiment: Path
    stages: list[Features]
    workspace: Workspace

    @classmethod
    def of(
        cls,
        path: Path,
        profile: str | None,
        overrides: tuple[str, ...],
        work_dir: Path | None,
        stop: Stop,
        wait: bool = False,
        compute: bool = True,
    ) -> _Loaded:
        from guie_core.experiment import Experiment
        from guie_train.device import device_of
        from guie_train.recipes import recipe_of
        from guie_train.runner import default_folder
        from guie_train.runs.outputs import store_of
        from guie_train.stage import Workspace
        from guie_train.stages.features import Features

        experiment = Experiment.load(path, overrides=overrides, profile=profile)
        recipe = recipe_of(experiment)
        stages = [stage for stage in recipe.stages(experiment.profile) if isinstance(stage, Features)]
        if compute:
            device_of(experiment.profile)  # before anything is done for it
        folder = (work_dir or default_folder(experiment)).absolute()
        return cls(path, stages, Workspace(store_of(folder), experiment.profile, stop, stages=stages, wait=wait))

    def stage(self, name: str) -> Features:
        """The stage of this name, "features train" or just "train"."""
        for stage in self.stages:
            if name in (stage.name, stage.name.removeprefix("features ")):
                return stage
        names = [stage.name.removeprefix("features ") for stage in self.stages]
        raise UsageError(
            f"{shown(self.experiment)} has no features {name!r}.{did_you_mean(name, names)} It has: {listing(names)}"
        )

    def uses(self, store: FeatureStore) -> list[dict[str, Any]] | None:
        """The stages that use a store, how many of its images, and how many it lacks; None: not known yet."""
        stages = [each for each in self.stages if self.workspace.folder(each).resolve() == store.folder.resolve()]
        found = []
        for stage in stages:
            if not self.workspace.complete(stage.manifest):
                return None
            manifest = self.workspace.get(stage.manifest)
            hashes = manifest.column("hash")[stage.rows(manifest)]
            lacking, bad = len(store.missing(hashes)), int(store.is_bad(hashes).sum())
            found.append({"stage": stage.name, "images": len(hashes) - lacking - bad, "missing": lacking})
        return found


def _stores(folder: Path, verb: str) -> list[FeatureStore]:
    """The store that a folder is, or those of a run, or of a folder of stores; for `guie features VERB`."""
    from guie_train.feature_store import FeatureStore
    from guie_train.runs.outputs import STORE, store_of

    if (folder / "store.json").exists():
        return [FeatureStore(folder)]
    of_all = "features/*/store.json"  # where all are
    patterns = ("stages/*/store.json", "*/store.json", of_all)
    inside = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    found = {path.resolve(): path for path in inside}  # two stages of a run may share one
    if not found:
        near = [store for store in (store_of(folder.absolute()), folder / STORE) if any(store.glob(of_all))]
        hint = (  # built ahead, they are no run's yet
            f". There are some in {shown(near[0])}: guie features {verb} {shlex.quote(shown(near[0]))}" if near else ""
        )
        raise GuieError(f"{shown(folder)}: no features: neither a store, nor a run that has some{hint}")
    return [FeatureStore(path.parent) for path in found.values()]


def _about(store: FeatureStore) -> dict[str, Any]:
    from guie_train.runs.outputs import users

    begun = datetime.fromtimestamp((store.folder / "store.json").stat().st_mtime).astimezone()
    return {
        "store": str(store.folder),
        "images": len(store),
        **store.about,
        "views": store.views,
        "bad": len(store.bad),
        "shards": len(store.shards()),
        "bytes": sum(path.stat().st_size for path in store.folder.iterdir()),
        "begun": begun.isoformat(timespec="seconds"),
        "used_by": [{"run": str(run), "stages": stages} for run, stages in users(store.folder).items()],
    }


def _in_words(about: dict[str, Any], experiment: Path | None) -> list[tuple[str, str]]:
    """Of what `_about` gives, what people ask of it."""
    views, bad = about["views"], about["bad"]
    images = f"{about['images']:,}" + f", and {bad:,} that cannot be decoded: bad.csv" * bool(bad)
    drawn = f", {views} of each image" * (views > 1) + f", seed {about['seed']}" * (views > 1 or about["seed"] != 0)
    runs = [f"{shown(Path(each['run']))} ({listing(map(_short, each['stages']))})" for each in about["used_by"]]
    rows = [
        ("store", shown(Path(about["store"]).resolve())),
        ("images", images),
        ("features", f"{about['dimension']:,} of each, {about['dtype']}, computed in {about['compute']}"),
        ("backbone", _component(about["backbone"])),
        ("weights", f"{about['weights']}" + f", {about['licence']}" * bool(about["licence"])),
        ("view", f"{_component(about['view'])}{drawn}"),
        ("decoding", about["decode"]),
        ("size", f"{size(about['bytes'])} in {plural(about['shards'], 'shard')}"),
        ("begun", datetime.fromisoformat(about["begun"]).strftime("%Y-%m-%d %H:%M")),
        ("used by", listing(runs) if runs else "no run yet"),
    ]
    if experiment is None:
        return rows
    uses = about["uses"]
    told = [
        f"{_short(each['stage'])} uses {each['images']:,}" + f" and lacks {each['missing']:,}" * bool(each["missing"])
        for each in uses or ()
    ]
    if uses is None:
        told = ["it uses them; of how many images is known once it has prepared its data"]
    return [*rows, ("experiment", f"{shown(experiment)}: {'; '.join(told) or 'it uses none of them'}")]


def _short(stage: str) -> str:
    """The name of a stage of features as the commands take it: "train"."""
    return stage.removeprefix("features ")


def _component(config: dict[str, Any]) -> str:
    """ "Squash: interpolation bicubic, antialias True"; without what is not set."""
    settings = [
        f"{key.replace('_', ' ')} {value}" for key, value in config.items() if key != "type" and value is not None
    ]
    return f"{config['type']}{': ' * bool(settings)}{', '.join(settings)}"
