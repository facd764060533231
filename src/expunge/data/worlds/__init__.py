"""Small data sets that are always there."""
