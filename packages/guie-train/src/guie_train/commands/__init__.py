"""The commands besides `train`; each module is imported when its command is invoked."""
