"""Data: reading it, naming what to forget, specifying problems, and the problems that are always there."""
