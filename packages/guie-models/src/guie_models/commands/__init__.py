"""The commands of guie-models, one module each."""
