"""What every group of benchmarks shares: the timer, the report, networks, peers, our own calls."""
