"""The data sets of the 5th-place recipe, each as it comes out of its archive."""
