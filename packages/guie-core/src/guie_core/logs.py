"""Where log records go: guie's own to stderr as plain lines, warnings of others, and all of them to a run's file."""

from __future__ import annotations

import logging


class _Console(logging.Handler):
    """Prints records around progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from .progress import write  # tqdm is not for `--help` to wait for

        try:
            text = self.format(record)
            write(text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}")
        except Exception:
            self.handleError(record)


def is_wanted(record: logging.LogRecord) -> bool:
    """guie's own records from INFO on, those of others from WARNING on."""
    own = record.name.split(".")[0].startswith("guie")
    return record.levelno >= (logging.INFO if own else logging.WARNING)


def to_console() -> None:
    """Send records to stderr. The command line does this once; a library call does not."""
    root = logging.getLogger()
    if not any(isinstance(handler, _Console) for handler in root.handlers):
        handler = _Console()
        handler.addFilter(is_wanted)
        root.addHandler(handler)
    root.setLevel(min(root.level, logging.INFO) or logging.INFO)
