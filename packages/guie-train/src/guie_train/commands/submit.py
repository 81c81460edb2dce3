"""``guie submit``: submissions to the Google Universal Image Embedding contest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from guie_core import UsageError
from guie_core.files import folder_option
from guie_core.tables import table
from guie_core.wording import listing, plural, shown
from guie_datasets.commands.options import max_bad_option, workers_option

if TYPE_CHECKING:
    from guie_core.profiles import Profile

_profile_option = click.option(
    "--profile", "profile_name", default="auto", show_default=True, metavar="NAME", help="What the time is judged for."
)


@click.group()
def submit() -> None:
    """Build a submission to the contest, check it as its host runs it, and score it."""


@submit.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("submission.zip"),
    show_default=True,
    metavar="FILE",
    help="The zip.",
)
@_profile_option
@click.option("--force", is_flag=True, help="Replace FILE.")
@click.pass_context
def build(ctx: click.Context, model: Path, output: Path, profile_name: str, force: bool) -> None:
    """Write submission.zip from MODEL, and check it: the folder of a run, or a .safetensors or .pt file.

    A TorchScript file goes in as it is; an embedder goes through the exporter TorchScript, which compares the two.
    """
    from guie_train.prediction.models import find_model
    from guie_train.prediction.submission import build_submission

    profile = _profile(profile_name)
    if output.suffix != ".zip":
        raise UsageError(f"--output {shown(output)}: a submission is a .zip")
    if output.exists() and not force:
        raise UsageError(f"{shown(output)} is there already; add --force to replace it")
    found = find_model(model, ("TorchScript", "safetensors"))
    with folder_option("--output"):
        build_submission(found, output)
    click.echo(f"{shown(output)}: from {shown(found.path)}")
    ctx.exit(_checked(output, profile))


@submit.command()
@click.argument("submission", type=click.Path(path_type=Path))
@_profile_option
@click.pass_context
def check(ctx: click.Context, submission: Path, profile_name: str) -> None:
    """Check SUBMISSION, a zip: what is in it, and what its model does with images of all shapes, without guie.

    The exit code is 1 if anything fails. TorchScript is a program: check only what you would run.
    """
    ctx.exit(_checked(submission, _profile(profile_name)))


@submit.command()
@click.argument("submission", type=click.Path(path_type=Path))
@click.argument("solution", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    required=True,
    metavar="DIR",
    help="The images of queries and index, at any depth; ids are their names without the suffix.",
)
@click.option(
    "--embeddings",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the embeddings are kept [default: SUBMISSION with .embeddings.parquet].",
)
@click.option(
    "--profile", "profile_name", default="auto", show_default=True, metavar="NAME", help="What to embed the images on."
)
@max_bad_option
@workers_option
@click.option("--fresh", is_flag=True, help="Embed the images anew.")
def score(
    submission: Path,
    solution: Path,
    images: Path,
    embeddings: Path | None,
    profile_name: str,
    max_bad: float,
    workers: int | None,
    fresh: bool,
) -> None:
    """Score SUBMISSION by mP@5 against SOLUTION, a CSV table of the host's form, or one with id, label and usage.

    The images are embedded by guie predict: what is stopped goes on, and what is there is used again.
    """
    from guie_train.prediction.inputs import AnyFolder
    from guie_train.prediction.models import find_model
    from guie_train.prediction.predicting import predict
    from guie_train.prediction.scoring import match, read_solution
    from guie_train.prediction.scoring import score as score_

    answers = read_solution(solution)
    output = embeddings or submission.with_suffix(".embeddings.parquet")
    if output.suffix != ".parquet":
        raise UsageError(f"--embeddings {shown(output)}: they are kept as .parquet here")
    model, folder = find_model(submission), AnyFolder(images.expanduser())
    # what is wrong with the solution is told before hours of work
    match(answers, [Path(row.image.path) for row in folder.rows()], images)
    with folder_option("--embeddings"):
        predicted = predict(
            model,
            [folder],
            output,
            profile=_profile(profile_name),
            workers=workers,
            normalise=False,
            max_bad=max_bad,
            fresh=fresh,
        )
    found = score_(answers, output, images)
    click.echo(f"mP@5 of {shown(submission)} among {plural(len(found.matched.index), 'index image')}")
    parts = [(part, plural(queries, "query"), f"{value:.4f}") for part, (queries, value) in found.parts.items()]
    click.echo(table(parts))
    if missing := found.missing_queries:
        click.echo(f"Without an image, and so 0: {plural(len(missing), 'query')}, such as {listing(missing, 3)}")
    if missing := found.matched.missing_answers:
        click.echo(
            f"Not in {shown(found.matched.place)}, and so not found: {plural(len(missing), 'right image')}, "
            f"such as {listing(missing, 3)}"
        )
    if answers.ignored:
        click.echo(f"Marked as ignored: {plural(answers.ignored, 'line')} of the solution.")
    if predicted.bad:
        click.echo(f"Not to be used: {plural(predicted.bad, 'image')}; listed in {shown(predicted.quarantine)}")


def _profile(name: str) -> Profile:
    from guie_core.profiles import profile

    return profile(name, "--profile")


def _checked(path: Path, profile: Profile) -> int:
    """Prints what was checked; the exit code."""
    from guie_train.prediction.submission import check_submission

    checks = check_submission(path, profile)
    rows = [(check.verdict, check.what, check.finding) for check in checks]
    # a line each where lines are searched
    click.echo(table(rows, width=None if sys.stdout.isatty() else sys.maxsize))
    failed = sum(check.verdict == "FAILED" for check in checks)
    click.echo(f"{shown(path)}: " + (f"{plural(failed, 'check')} failed." if failed else "nothing failed."))
    return int(failed > 0)
