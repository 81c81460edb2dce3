"""A data set plugin for guie: 1,034 emoji, each drawn in six styles."""
