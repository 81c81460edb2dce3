"""The `train` command."""

from __future__ import annotations

from pathlib import Path

import click

from guie_core.cli import plugin_option, traceback_option


@click.command(context_settings={"max_content_width": 100})
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option("--profile", metavar="NAME", help="What to run on; `guie profiles list` shows them.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value, such as recipe.arcface.epochs=3."
)
@click.option("--stage", metavar="NAME", help="Stop after this stage.")
@click.option(
    "--from",
    "start",
    metavar="NAME",
    help="Run this stage and what follows again; what there is stays until the new is whole.",
)
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the run goes; runs/EXPERIMENT by default. Beside it is store/, which all runs there share.",
)
@click.option(
    "--resume/--fresh",
    default=True,
    help="Go on in the same folder (default), or set its run aside and begin anew; finished stages are reused.",
)
@click.option("--dry-run", is_flag=True, help="Tell what each stage takes and what is missing; run none.")
@plugin_option
@traceback_option
def train(
    experiment: Path,
    profile: str | None,
    overrides: tuple[str, ...],
    stage: str | None,
    start: str | None,
    work_dir: Path | None,
    resume: bool,
    dry_run: bool,
) -> None:
    """Train EXPERIMENT, a Python file: from its data sets to a report and exported models.

    What an earlier run has computed is reused. Ctrl-C stops after the current step, and the same command goes on.
    """
    # here, so that --help needs neither torch nor mmengine
    from guie_core.experiment import Experiment
    from guie_core.files import folder_option
    from guie_train import runner
    from guie_train.processes import one_voice

    with one_voice():
        loaded = Experiment.load(experiment, overrides=overrides, profile=profile)
        if dry_run:
            runner.show_plan(loaded, work_dir=work_dir, stage=stage, start=start)
        else:
            with folder_option("--work-dir"):
                runner.train(loaded, work_dir=work_dir, stage=stage, start=start, fresh=not resume)
