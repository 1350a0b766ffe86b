"""Syslog lines: RFC 5424 and RFC 3164, with the priority in front or, as in files, without it."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final

from aggregator.wire import rules
from aggregator.wrap.stamp import leading_stamp

_FACILITIES: Final = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip
"""RFC 5424, section 6.2.1, by the names that syslog(3) has for them."""
_SEVERITIES: Final = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_MOST: Final = len(_FACILITIES) * len(_SEVERITIES) - 1

_ISO: Final = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)"
_PRIORITY: Final = r"(?:<(\d{1,3})>)?"
# RFC 5424, section 6: VERSION SP TIMESTAMP SP HOSTNAME SP APP-NAME SP PROCID SP MSGID SP STRUCTURED-DATA [SP MSG]
_RFC_5424: Final = re.compile(
    rf"{_PRIORITY}1 (-|{_ISO}) ([!-~]{{1,255}}) ([!-~]{{1,48}}) ([!-~]{{1,128}}) "
    rf"([!-~]{{1,32}}) (?:-(?: |\Z)|(?=\[))",
    re.ASCII,
)
# RFC 3164, section 4.1: TIMESTAMP SP HOSTNAME SP TAG CONTENT; rsyslog and others also write the time of RFC 3339 there.
_RFC_3164: Final = re.compile(
    rf"{_PRIORITY}([A-Z][a-z]{{2}} [ \d]\d \d\d:\d\d:\d\d|{_ISO}) ([!-~]{{1,255}}) "
    r"([^\s:\[\]]{1,48})(?:\[([^\s\]]{1,128})\])?: ?",
    re.ASCII,
)
# Without a priority, only the host distinguishes a syslog line from a program's own line, which may look the same: a
# time, a level or thread, a module.
_LEVEL: Final = re.compile(
    r"trace|debug|info|notice|warn|warning|err|error|crit|critical|severe|alert|emerg|fatal|panic", re.IGNORECASE
)
_HOST: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_PRIORITY_ALONE: Final = re.compile(r"<(\d{1,3})>", re.ASCII)
_ELEMENT: Final = re.compile(
    r"\[([!#-<>-\\^-~]{1,32})((?: [!#-<>-\\^-~]{1,32}=\"(?:[^\"\\\]]|\\.)*+\")*+)\]", re.DOTALL
)
_PARAMETER: Final = re.compile(r" ([^= ]+)=\"((?:[^\"\\\]]|\\.)*+)\"", re.DOTALL)
_ESCAPED: Final = re.compile(r'\\(["\\\]])')
_BOM: Final = "\ufeff"


@dataclass(slots=True)
class Syslog:
    """What a syslog line says."""

    payload: dict[str, Any]
    """``message`` first, then the other fields of the line."""
    timestamp: str | None
    host: str | None


def read(line: str, today: date) -> Syslog | None:
    """Read a line that may be a syslog line; None if it is not.

    A time without a year gets the latest year with which it is at most a day after ``today``. A time without a zone is
    in local time.
    """
    if line.startswith("<"):
        priority = _PRIORITY_ALONE.match(line)
        if priority is None or int(priority[1]) > _MOST:
            return None
        found = _rfc_5424(line) if line.startswith("1 ", priority.end()) else _rfc_3164(line, today)
        return found or Syslog(_payload(line[priority.end() :], priority[1]), None, None)
    return _rfc_5424(line) if line.startswith("1 ") else _rfc_3164(line, today)


def _rfc_5424(line: str) -> Syslog | None:
    if not (head := _RFC_5424.match(line)):
        return None
    priority, time, host, program, pid, msgid = head.groups()
    if time != "-" and not rules.is_date_time(time):
        return None
    at = head.end()
    data: dict[str, Any] = {}
    if line.startswith("[", at):
        if not (elements := _structured_data(line, at)):
            return None
        data, at = elements
    payload = _payload(line[at:].removeprefix(_BOM), priority, program, pid)
    if msgid != "-":
        payload["msgid"] = msgid
    if data:
        payload["structured_data"] = data
    return Syslog(payload, None if time == "-" else time, None if host == "-" else host)


def _structured_data(line: str, at: int) -> tuple[dict[str, Any], int] | None:
    """The elements that begin at ``at``, each an object of its parameters, and the index where the message begins.

    A parameter that is given more than once becomes an array.
    """
    data: dict[str, dict[str, Any]] = {}
    while element := _ELEMENT.match(line, at):
        if element[1] in data:
            return None
        parameters: dict[str, Any] = {}
        for name, escaped in _PARAMETER.findall(element[2]):
            value = _ESCAPED.sub(r"\1", escaped)
            if name not in parameters:
                parameters[name] = value
            elif isinstance(parameters[name], list):
                parameters[name].append(value)
            else:
                parameters[name] = [parameters[name], value]
        data[element[1]] = parameters
        at = element.end()
    if at < len(line) and line[at] != " ":
        return None
    return data, at + 1


def _rfc_3164(line: str, today: date) -> Syslog | None:
    if not (head := _RFC_3164.match(line)):
        return None
    priority, written, host, program, pid = head.groups()
    if priority is None and (_LEVEL.fullmatch(host) or not _HOST.fullmatch(host)):
        return None
    if not (time := _stamp(written, today)):
        return None
    return Syslog(_payload(line[head.end() :], priority, program, pid), time, host)


@functools.lru_cache(maxsize=64)  # many lines share a second, and lines that arrive together share a few seconds
def _stamp(written: str, today: date) -> str | None:
    return leading_stamp(written, datetime(today.year, today.month, today.day, tzinfo=UTC))


def _payload(message: str, priority: str | None, program: str | None = None, pid: str | None = None) -> dict[str, Any]:
    payload: dict[str, Any] = {"message": message}
    if priority is not None:
        payload |= _meaning(priority)
    if program is not None and program != "-":
        payload["program"] = program
    if pid is not None and pid != "-":
        payload["pid"] = pid
    return payload


@functools.lru_cache(maxsize=1024)
def _meaning(digits: str) -> dict[str, Any]:
    facility, severity = divmod(int(digits), len(_SEVERITIES))
    return {"priority": int(digits), "facility": _FACILITIES[facility], "severity": _SEVERITIES[severity]}
