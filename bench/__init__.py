"""Measurements: ``python -m bench``. Every figure in README.md and report.md comes from ``bench/results/``.

Commands, each of which writes one result file:

- ``load``      throughput against what the disk and SQLite alone can do with the same rows (``ceiling``)
- ``latency``   ack latency: one event in flight, at an offered rate, at half of peak
- ``growth``    all of this again while the database grows
- ``stages``    what an event costs at each stage, one after another
- ``peers``     other systems with the same events
- ``plot``      draws result files

What they are made of: ``workload`` (the events that are sent), ``process`` (a real server, watched from outside),
``command`` (options, repetition, medians), ``result`` (machine, versions, commit, settings, figures).
"""
