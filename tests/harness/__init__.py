"""Code that the tests share. Tests import from here, and never from each other or from a conftest.

- A real server, and changes to the product for it: ``server_process``, ``changes``
- Bytes to the server and lines from it: ``wire``, ``mutated_lines``, ``fuzz_protocol``
- ``aggregator send`` as a program: ``sending``
- Clients: ``load_client``, ``polite_client``, ``flooder``
- What must be true at the end: ``account``, ``database_check``
- A subscriber, and what must be true of the lines it was sent: ``reading``
- The engine without a server: ``storage``, ``keys``, ``engines``, ``dict_engine``, ``list_engine``, ``pages``
- PostgreSQL, its standbys and its failures: ``postgres``, ``postgres_fixtures``, ``tcp_proxy``
- Faults from outside: ``disk``, ``power_cut``, ``network``, ``strace``, ``other_program``
- Concurrency and waiting: ``background``, ``polling``
- The sizes of the tests, and their measurements: ``sizes``, ``record``
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent
"""The project's folder, where its programs run."""
