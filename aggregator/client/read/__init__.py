"""What ``aggregator tail`` and ``aggregator export`` are made of."""
