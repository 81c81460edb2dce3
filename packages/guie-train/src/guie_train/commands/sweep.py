"""`guie sweep`: one experiment with several values of its settings."""

from __future__ import annotations

import os
from pathlib import Path

import click

from guie_core.cli import plugin_option, traceback_option


@click.command(context_settings={"max_content_width": 100})
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option(
    "--grid",
    multiple=True,
    metavar="KEY=VALUE,VALUE...",
    help="Values of a setting. May be repeated: every combination is a point.",
)
@click.option("--trials", type=click.IntRange(1), metavar="N", help="Try N points that Optuna suggests.")
@click.option(
    "--suggest",
    multiple=True,
    metavar="KEY=LOW..HIGH[:log]",
    help="Where Optuna takes values of a setting from; or KEY=VALUE,VALUE... to choose among. May be repeated.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of what Optuna suggests.")
@click.option("--profile", metavar="NAME", help="What to run on; `guie profiles list` shows them.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value for all points.")
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the runs of the points go; runs/EXPERIMENT-sweep by default. What stages compute goes to store/ "
    "beside it, which the points share with each other and with the other runs there.",
)
@click.option("--full", is_flag=True, help="Run every stage of every point, to reports and exported models.")
@click.option("--retry", is_flag=True, help="Try points again that have failed before.")
@click.option("--dry-run", is_flag=True, help="Check and list the points; run and write nothing.")
@plugin_option
@traceback_option
def sweep(
    experiment: Path,
    grid: tuple[str, ...],
    trials: int | None,
    suggest: tuple[str, ...],
    seed: int,
    profile: str | None,
    overrides: tuple[str, ...],
    work_dir: Path | None,
    full: bool,
    retry: bool,
    dry_run: bool,
) -> None:
    """Train EXPERIMENT with several values of its settings, and rank these points.

    Points are ranked by the metric of selection, by which a run chooses its checkpoint as well: never by the score of
    the report. What is reported on is not used for any choice, so points stop before it is looked at.

    Each point is a run of its own, and what points have in common, such as features, is computed once. Ctrl-C stops
    after the current step, and the same command goes on; points that are done are not run again. A point that fails
    is told, and the others go on, but for those that have the same stage on the same data, once it has failed twice.

    \b
    guie sweep EXPERIMENT --grid recipe.arcface.epochs=10,30 --grid recipe.loss.margin=0.3,0.5
    guie sweep EXPERIMENT --trials 20 --suggest recipe.arcface.optimizer.base.lr=1e-4..1e-1:log
    """
    # here, so that --help needs neither torch nor mmengine
    from collections.abc import Mapping

    from guie_core import Experiment, ExperimentError, GuieError, Problem, UsageError
    from guie_core.files import folder_option
    from guie_core.wording import listing, plural, shown
    from guie_train.processes import launched, one_voice
    from guie_train.runner import default_folder
    from guie_train.sweeping.points import Point, check_keys, grid_points, load_point, load_points, read_grid
    from guie_train.sweeping.study import Study, read_suggestions, require_optuna
    from guie_train.sweeping.sweep import Sweep, lines, selecting

    with one_voice():
        if launched(os.environ)[0].count > 1:
            raise UsageError("a sweep is one process, not several: start it without torchrun or srun.")
    if bool(grid) == bool(suggest) or bool(suggest) != bool(trials):
        raise UsageError("name the points: with --grid, or with --trials and --suggest.")
    if suggest:
        require_optuna()
    problems: list[Problem] = []
    values, suggestions = read_grid(grid, problems), read_suggestions(suggest, problems)
    check_keys([*values, *(each.key for each in suggestions)], overrides, problems)
    if problems:
        raise ExperimentError(problems, "the points")

    # a range is sound if its ends are: each is checked with the other settings as they are
    candidates = grid_points(values) if grid else [{each.key: end} for each in suggestions for end in each.ends]
    points = load_points(experiment, overrides, profile, candidates)
    base = Experiment.load(experiment, overrides, profile)
    folder = work_dir or default_folder(base).with_name(f"{default_folder(base).name}-sweep")
    stop, *_ = [selecting(point) for point in points]
    what = plural(len(points), "point") if grid else plural(trials or 0, "trial")
    goal = "to the report" if full else f"to stage {stop!r}"
    click.echo(f"{what} of {base.name} on {base.profile.name} -> {shown(folder)}, each {goal}")
    if dry_run:
        with folder_option("--work-dir"):
            refused = Sweep(folder, (), full).look_over(points, "point" if grid else "value")
        for point in points if grid else ():
            click.echo(f"  {point.words}  {shown(folder / point.folder)}")
        if refused:
            raise GuieError(f"{refused} of {plural(len(points), 'point' if grid else 'value')} would fail.")
        return

    command = ["guie", "sweep", str(experiment)]
    for option, given in (("--grid", grid), ("--suggest", suggest), ("--set", overrides)):
        command += [part for text in given for part in (option, text)]
    for option, text in (("--trials", trials), ("--profile", profile), ("--work-dir", work_dir)):
        command += [option, str(text)] if text else []
    command += ["--seed", str(seed)] * bool(suggest) + ["--full"] * full + ["--retry"] * retry
    made = Sweep(folder, command, full, retry)

    def load(values: Mapping[str, str]) -> Point:
        return load_point(experiment, overrides, profile, values)

    with folder_option("--work-dir"):
        if grid:
            swept = made.over(points)
        else:
            swept = made.by(lambda: Study(folder, suggestions, seed, base.digest), trials or 0, load)
    click.echo("\n".join(lines(swept.outcomes, folder)))
    failed, left = f"{swept.failed} of {plural(swept.total, 'point' if grid else 'trial')} failed", swept.left
    if made.left_out:
        stages = listing(dict.fromkeys(map(repr, made.left_out.values())))
        raise GuieError(
            f"{failed}, and {f'{left} were' if left > 1 else '1 was'} left out: in "
            f"{'them' if left > 1 else 'it'}, stage {stages} would do what it did in two that failed in it by the same "
            "error. Mend that, and add --retry."
        )
    if swept.failed:
        errors = [outcome.error for outcome in swept.outcomes]
        alike = ", all by the same error" * (1 < len(errors) == swept.failed and len(set(errors)) == 1)
        raise GuieError(f"{failed}{alike}; --retry tries them again.")
