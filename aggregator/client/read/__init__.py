"""The parts of ``aggregator tail`` and ``aggregator export``."""
