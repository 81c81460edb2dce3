"""The commands that guie-core brings: one module each, imported when it is invoked."""
