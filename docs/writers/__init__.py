"""What generate.py writes: pages and blocks that are derived from the code."""
