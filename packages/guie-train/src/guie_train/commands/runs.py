"""`guie runs`: what was run, how it came out, what differs, and room on the disk."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from guie_core import UsageError
from guie_core.files import remove_directory
from guie_core.record import RunRecord, find_runs, holder, run_folders
from guie_core.tables import table
from guie_core.wording import plural, shown, size
from guie_train.runs import outputs, words
from guie_train.runs.comparing import compare as compare_
from guie_train.runs.finding import find_run, folder_of, name_of
from guie_train.runs.outputs import SWEEP
from guie_train.runs.scores import NOT_COMPARABLE, TRAINED, by_report, by_selection, data_of, same_data

RUNS = Path("runs")
folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=RUNS,
    show_default=True,
    metavar="DIR",
    help="Where the runs are, in folders of any depth.",
)
format_option = click.option(
    "--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True
)


@click.group()
def runs() -> None:
    """List, show, compare, rank and clean up runs.

    A run is called by its path, or by its path below --folder.
    """


@runs.command("list")
@folder_option
@format_option
def list_(folder: Path, style: str) -> None:
    """List runs, the oldest first.

    "selection" is the score by which a run chose its checkpoint, "reported" the one of what it exports, by which
    guie runs best ranks.
    """
    records, damaged = _find(folder)
    if style == "json":
        rows = [words.as_json(record, folder) for record in records]
        rows += [
            {"name": name_of(path, folder), "path": str(path), "status": "damaged", "error": error}
            for path, error in damaged.items()
        ]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if not records and not damaged:
        click.echo(f"No runs below {shown(folder)}. guie-train EXPERIMENT makes one; --folder looks elsewhere.")
    if records:
        click.echo("\n".join(words.list_lines(records, folder)))
    for error in damaged.values():
        click.echo(error)


def _find(folder: Path) -> tuple[list[RunRecord], dict[Path, str]]:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{shown(folder)} is a file; --folder names the folder of the runs.")
    if not folder.exists() and folder != RUNS:  # which the first run makes
        raise UsageError(f"there is no folder {shown(folder)}; --folder names the folder of the runs.")
    return find_runs(folder)


@runs.command()
@click.argument("name")
@folder_option
@format_option
def show(name: str, folder: Path, style: str) -> None:
    """Show all that there is to say of a run.

    Its experiment as resolved, command, times, machine, git state, data, seeds, plugins, versions, stages, scores, and
    where report and models are.
    """
    record = find_run(name, folder)
    if style == "json":
        whole = words.as_json(record, folder) | {"executions": record.executions, "records": record.records}
        click.echo(
            json.dumps(whole | {"resolved": record.experiment["resolved"], "seeds": words.seeds(record)}, indent=2)
        )
        return
    for part in words.show_lines(record, folder):
        click.echo(part)


@runs.command()
@click.argument("names", nargs=-1, required=True, metavar="A B...")
@folder_option
@format_option
def compare(names: tuple[str, ...], folder: Path, style: str) -> None:
    """Say what differs between two runs or more.

    Settings, profile, versions, plugins, git state, machine, data, stages and scores are compared. Stages have the same
    outputs if they have the same key. Scores stand beside their difference from the first run's. Where a run has not
    come to its report, as points of sweeps, those by which checkpoints were chosen are shown as well.
    """
    if len(names) < 2:
        raise UsageError("it takes two runs or more to compare.")
    records = [find_run(name, folder) for name in names]
    found = compare_(records)
    called = [name_of(record.path, folder) for record in records]
    if style == "json":
        click.echo(json.dumps({"runs": called, **asdict(found)}, indent=2, ensure_ascii=False))
        return
    for part in words.comparison_lines(found, records, called):
        click.echo(part)


@runs.command()
@click.option("--metric", metavar="NAME", help="What to rank by [default: the first that there is].")
@click.option("--system", default=TRAINED, show_default=True, metavar="NAME", help="Whose reported score.")
@click.option("--selection", is_flag=True, help="Rank by the score that checkpoints are chosen by instead.")
@folder_option
@format_option
def best(metric: str | None, system: str, selection: bool, folder: Path, style: str) -> None:
    """Rank runs by a score, best first.

    By default the score is the reported one of what a run exports, with augmentation if there is any. It tells how good
    runs are and isn't there to choose between them: the best of many is better by luck as well. To choose, use
    --selection, as guie sweep does.
    """
    records, _ = _find(folder)
    if not records:
        raise UsageError(f"there are no runs below {shown(folder)}; --folder names another.")
    metric, ranked = by_selection(records, metric) if selection else by_report(records, metric, system)
    if style == "json":
        rows = [{**words.as_json(each.record, folder), "metric": metric, "value": each.value} for each in ranked]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    click.echo(f"{metric} {'in selection' if selection else 'reported'}")
    click.echo(
        table(
            [
                (f"{number:>3}", f"{each.value:.4f}", name_of(each.record.path, folder), each.label, each.record.status)
                for number, each in enumerate(ranked, 1)
            ],
            wrap=2,
            width=1000,
        )
    )
    if left_out := len(records) - len(ranked):
        click.echo(f"{plural(left_out, 'run')} without that score left out")
    if not same_data(data_of(each.record) for each in ranked):
        click.echo(f"{NOT_COMPARABLE}: guie runs compare A B")


@runs.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--failed", is_flag=True, help="The runs that failed as well.")
@click.option("--features", is_flag=True, help="Stores of features as well, if no run refers to them.")
@click.option("--yes", is_flag=True, help="Do it, instead of saying what would be done.")
@folder_option
def clean(names: tuple[str, ...], failed: bool, features: bool, yes: bool, folder: Path) -> None:
    """Remove outputs that no run refers to, and runs.

    Runs and sweeps are removed if they are named, and with them the outputs that only they referred to.
    Nothing that a run refers to is removed, nor is a run that is in use. Stores of features stay unless --features is
    given: a run to come may save hours by them. Without --yes, nothing is removed at all.
    """
    chosen, sweeps = _chosen(names, folder)
    named = {path.resolve() for path in chosen}
    failures = [r.path for r in _find(folder)[0] if r.status == "failed" and r.path.resolve() not in named]
    if failed:
        chosen, failures = [*chosen, *failures], []
    for path in (*chosen, *sweeps):
        if who := holder(path):
            raise UsageError(f"{shown(path)} is in use by {who}.\nNothing was removed.")

    going = {path.resolve() for path in chosen}
    stores = {outputs.store_of(path) for path in (*going, *run_folders(folder.resolve()))}
    stores.add(folder.resolve() / outputs.STORE)
    found = [output for store in sorted(stores) for output in outputs.unused(store, going)]
    left = outputs.left_behind(folder)
    kept = [] if features else [output for output in found if output.stage == outputs.FEATURES]
    found = [output for output in found if output not in kept]
    rows = [("run", path, outputs.bytes_in(path)) for path in (*chosen, *left)]
    rows += [("sweep", path, sum(file.stat().st_size for file in path.iterdir() if file.is_file())) for path in sweeps]
    for output in found:
        rows.append(("outputs" if output.whole else "unfinished outputs", output.path, outputs.bytes_in(output.path)))
    if rows:
        cells = [(what, shown(path), f"{size(count):>9}") for what, path, count in rows]
        click.echo(table(cells, wrap=1, width=1000))
    if kept:
        total = size(sum(outputs.bytes_in(output.path) for output in kept))
        click.echo(f"Features that no run refers to: {plural(len(kept), 'store')}, {total}. --features removes them.")
    if failures:
        total = size(sum(map(outputs.bytes_in, failures)))
        click.echo(f"Runs that failed: {len(failures)}, {total}. --failed removes them, and what only they refer to.")
    if not rows:
        click.echo(f"There is nothing to remove below {shown(folder)}.")
        return
    if not yes:
        click.echo(f"{size(sum(count for *_, count in rows))} in all. Nothing was removed: --yes does it.")
        return
    for path in chosen:
        outputs.remove_run(path)
    for path in (*left, *sweeps):
        remove_directory(path)
    busy = {output.path for output in outputs.remove_outputs(found)}
    for path in sorted(busy):
        click.echo(f"{shown(path)} stays: a process is making it at this moment.")
    click.echo(f"{size(sum(count for _, path, count in rows if path not in busy))} removed.")


def _chosen(names: tuple[str, ...], folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders of the runs that are named, and of the sweeps, all of whose points are among them."""
    chosen: list[Path] = []
    sweeps: list[Path] = []
    for name in dict.fromkeys(names):
        sweep = next((path for path in (folder / name, Path(name)) if (path / SWEEP).exists()), None)
        if sweep is None:
            chosen.append(folder_of(name, folder))
        else:
            sweeps.append(sweep)
            chosen += run_folders(sweep)
    return list({path.resolve(): path for path in chosen}.values()), sweeps
