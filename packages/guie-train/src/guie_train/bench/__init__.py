"""What this machine does in a second, measured with the code that trains: `guie bench`. Imports no torch."""

PARTS = ("decode", "backbone", "extraction", "head", "search")
