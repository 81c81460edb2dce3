"""`guie-train EXPERIMENT`, which is `guie train EXPERIMENT`."""

from __future__ import annotations

from guie_core.cli import run_command
from guie_train.cli import train


def main() -> None:
    """Run the command and exit with its code."""
    run_command(train, "guie-train")


if __name__ == "__main__":
    main()
