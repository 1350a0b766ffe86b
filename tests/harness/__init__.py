"""What the tests share. Tests import from here, and never from each other or from a conftest.

- A real server, and changes to the product for it: ``server_process``, ``changes``
- Bytes to it and lines from it: ``wire``, ``mutated_lines``, ``fuzz_protocol``
- ``aggregator send`` as a program: ``sending``
- Clients: ``load_client``, ``polite_client``, ``flooder``
- What must be true at the end: ``account``, ``database_check``
- A subscriber, and what must be true of what it was sent: ``reading``
- The engine without a server: ``storage``, ``keys``, ``engines``, ``dict_engine``, ``list_engine``, ``pages``
- PostgreSQL, its standbys and their ends: ``postgres``, ``postgres_fixtures``, ``tcp_proxy``
- Faults from outside: ``disk``, ``power_cut``, ``network``, ``strace``, ``other_program``
- Doing two things at once, and waiting: ``background``, ``polling``
- How large the tests are, and what they measured: ``sizes``, ``record``
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent
"""The project's folder, where its programs run."""
