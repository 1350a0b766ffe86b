"""Measurements: ``python -m bench``.

Commands that measure; each writes a result file, ``bench/results/<machine>/<command>.json``, in place of the old one:

- ``load``       throughput against what the disk and SQLite alone can do with the same rows (``ceiling``)
- ``latency``    ack latency: one event in flight, at an offered rate, at half of peak
- ``tls``        throughput and latency over TLS, compared with plain TCP
- ``handshakes`` acks of a known client while ``strangers`` flood the server with TLS handshakes
- ``growth``     rate, latency, memory, disk space and start, measured again as the database grows
- ``stages``     what an event costs at each stage, one after another
- ``permission`` what a permission costs for an event
- ``peers``      other systems with the same events
- ``subscribe``  what readers get and what they cost, compared with other systems
- ``engine``     PostgreSQL as the engine, compared with psycopg alone and with SQLite

The fault tests write ``faults.json`` and ``soak.json`` into the same folder. Commands that show results:

- ``plot``       draws result files
- ``tables``     writes the tables of figures in README.md and report.md (``documents``, ``tables``)

What the commands share: ``workload`` (the events that are sent), ``process`` (a real server, watched from outside),
``offered`` (the open-loop sender, over ``channel``), ``asker`` (commands sent during a load), ``command`` (options,
repetition, medians), ``percentiles``, ``result`` (machine, versions, commit, settings, figures).

``notebook.md`` records what was tried, with figures.
"""
