"""Users of this machine, as the kernel numbers them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

SUPERUSER: Final = 0

_OVERFLOW_UID: Final = Path("/proc/sys/kernel/overflowuid")
_USUAL_OVERFLOW_UID: Final = 65534  # where that file is not shown (systemd: ProcSubset=pid)


@cache
def overflow_uid() -> int:
    """What the kernel says instead of any user that has no number in this process's namespace (user_namespaces(7)).

    So it is nobody in particular, and nothing may be permitted to it.
    """
    try:
        return int(_OVERFLOW_UID.read_text())
    except (OSError, ValueError):
        return _USUAL_OVERFLOW_UID
