"""Speed beside a peer: both in one run on the same machine, in turns. See `python -m benchmarks --help`."""
