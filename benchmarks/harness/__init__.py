"""What every group of `bench.py` shares: the timer, the report, networks, peers, our own calls."""
