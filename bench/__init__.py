"""Measurements: ``python -m bench``.

Commands that measure. Each writes one result file, ``bench/results/<machine>/<command>.json``, in place of the old one:

- ``load``      throughput against what the disk and SQLite alone can do with the same rows (``ceiling``)
- ``latency``   ack latency: one event in flight, at an offered rate, at half of peak
- ``tls``       throughput and latency over TLS, beside plain TCP
- ``growth``    all of this again while the database grows
- ``stages``    what an event costs at each stage, one after another
- ``peers``     other systems with the same events
- ``subscribe`` what readers get and what they cost, beside other systems

The fault tests write ``faults.json`` and ``soak.json`` beside them. Commands that show:

- ``plot``      draws result files
- ``tables``    writes the tables of figures in README.md and report.md (``documents``, ``tables``)

What they are made of: ``workload`` (the events that are sent), ``process`` (a real server, watched from outside),
``offered`` (the open-loop sender, over ``channel``), ``asker`` (commands beside the load), ``command`` (options,
repetition, medians), ``percentiles``, ``result`` (machine, versions, commit, settings, figures).

``notebook.md`` is what was tried, with figures.
"""
