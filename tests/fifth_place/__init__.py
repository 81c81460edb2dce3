"""The five data sets of the 5th place, small."""
