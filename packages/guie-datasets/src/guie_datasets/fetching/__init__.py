"""Getting data sets from where their owners publish them, and unpacking them."""
