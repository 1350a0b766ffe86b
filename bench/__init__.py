"""Measurements: ``python -m bench load``. Every figure in README.md and report.md comes from ``bench/results/``.

- ``workload``  the events that are sent: random or ordered ids, a part of them twice
- ``ceiling``   what the disk and SQLite alone can do with the same rows
- ``process``   a real server, started for a run and watched from outside
- ``load``      throughput, and ack latency at an offered rate
- ``peers``     the same events sent to other systems
- ``plot``      the plots of report.md, from result files
- ``result``    a result file: machine, versions, commit, settings, figures
"""
