"""data/benchmarks."""
