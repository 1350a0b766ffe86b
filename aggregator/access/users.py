"""Users of this machine, as the kernel numbers them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

SUPERUSER: Final = 0

_OVERFLOW_UID: Final = Path("/proc/sys/kernel/overflowuid")
_USUAL_OVERFLOW_UID: Final = 65534  # used where that file is hidden (systemd: ProcSubset=pid)


@cache
def overflow_uid() -> int:
    """The uid that the kernel reports for every user without a number in this process's namespace (user_namespaces(7)).

    It stands for nobody in particular, so nothing may be permitted to it.
    """
    try:
        return int(_OVERFLOW_UID.read_text())
    except (OSError, ValueError):
        return _USUAL_OVERFLOW_UID
