"""``guie predict``: embeddings of images by a trained model."""

from __future__ import annotations

from pathlib import Path

import click

from guie_core.files import folder_option
from guie_core.spelling import told_as
from guie_core.wording import plural, shown
from guie_datasets.commands.options import data_folder_option, max_bad_option, workers_option


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("what", nargs=-1, required=True, metavar="IMAGE|PATH|NAME...")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    required=True,
    help="Where the embeddings go: .parquet, or .npy with the rows in a .csv beside it.",
)
@click.option("--profile", "profile_name", default="auto", show_default=True, metavar="NAME", help="What to run on.")
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Images at once [default: the profile's].")
@click.option(
    "--normalise/--raw",
    default=True,
    help="Give embeddings the length 1 (default), or leave them as the model gives them.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of a data set, as for guie data prepare. May be repeated.",
)
@click.option(
    "--view",
    metavar="SETTINGS",
    help="How an ONNX model's images are made where nothing beside it says so: dict(type='Squash', mean=..., std=...).",
)
@max_bad_option
@workers_option
@data_folder_option
@click.option("--fresh", is_flag=True, help="Begin anew, and replace FILE if it was made by another model.")
def predict(
    model: Path,
    what: tuple[str, ...],
    output: Path,
    profile_name: str,
    batch_size: int | None,
    normalise: bool,
    overrides: tuple[str, ...],
    view: str | None,
    max_bad: float,
    workers: int | None,
    fresh: bool,
) -> None:
    """Embed images with MODEL: the folder of a run, or a .safetensors, .zip, .pt or .onnx file.

    Images are named one by one, or are a folder (of class folders or of anything), a CSV or Parquet table, a manifest,
    TFRecord or tar shards, or a data set by its name. Stopped by Ctrl-C or killed, the same command goes on.

    \b
    guie predict runs/quickstart photos -o photos.parquet
    guie predict model.safetensors a.jpg b.jpg -o two.npy
    """
    from guie_core.profiles import profile
    from guie_train.prediction.inputs import recognised, spelling
    from guie_train.prediction.models import find_model, view_settings
    from guie_train.prediction.outputs import check_name
    from guie_train.prediction.predicting import predict as predict_

    check_name(output, [Path(each).expanduser() for each in what])
    found = find_model(model, view=view_settings(view))
    data = recognised(what, overrides)
    with folder_option("--output"), told_as(spelling(what)):
        done = predict_(
            found,
            data,
            output,
            profile=profile(profile_name, "--profile"),
            batch_size=batch_size,
            workers=workers,
            normalise=normalise,
            max_bad=max_bad,
            fresh=fresh,
        )
    facts = f"{plural(done.images, 'embedding')} of {done.dimension} dimensions by {shown(found.path)}"
    if done.reused:
        click.echo(f"{shown(done.output)} is complete already: {facts}. --fresh makes it anew.")
    else:
        click.echo(f"{shown(done.output)}: {facts}" + (f", {done.rate:,.1f} images/s" if done.rate else ""))
    if found.note:
        click.echo(found.note)
    listed = [f"{done.bad:,} bad"] * bool(done.bad) + [f"{done.left_out:,} passed over"] * bool(done.left_out)
    if listed and done.quarantine.exists():
        click.echo(f"{' and '.join(listed)}; listed in {shown(done.quarantine)}")
