"""The commands of `guie data`, a module each; data.py joins them and imports one when it is invoked."""
