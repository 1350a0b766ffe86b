"""The server that a command talks to: where it is, how to talk to it, and how to authenticate."""

from __future__ import annotations

import argparse
import ssl
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from aggregator import openssl
from aggregator.address import loopback_of
from aggregator.cli.parser import ENV, Default, Parser, address, complain, file, host, integer, option
from aggregator.client.connect import Server
from aggregator.client.reply import reason
from aggregator.config import Config

_TLS: Final = "tls:"
_UNIX: Final = "unix:"

MAX_TOKEN: Final = 1000
"""Most characters of a token, because the line that sends it has at most 1,024 bytes."""


class _Target(NamedTuple):
    host: str
    port: int
    tls: bool = False


def add_target(parser: Parser) -> None:
    """The options that name a server.

    Without them it is the server that the environment configures, as in a container, at its unix socket if there is
    one.
    """
    defaults = Config()
    configured_path = Default(parser, ENV + "SOCKET", file, None)
    configured_host = Default(parser, ENV + "HOST", host, defaults.host)
    configured_port = Default(parser, ENV + "PORT", lambda text: integer(text, 1, 65535), defaults.port)

    def configured(remarks: list[str]) -> _Target:
        path: Path | None = configured_path.settle(remarks)
        if path and _is_socket(path):
            return _Target(str(path.absolute()), 0)
        return _Target(loopback_of(configured_host.settle(remarks)), configured_port.settle(remarks))

    shown = "the server of {}, or {} and {}".format(
        *(one.variable for one in (configured_path, configured_host, configured_port))
    )
    option(parser, "--to", _target, configured, "HOST:PORT, tls:HOST:PORT or unix:PATH", shown=shown, metavar="SERVER")
    option(parser, "--ca", file, None, "with tls: certificates that sign the server's", shown="the system's")
    option(parser, "--cert", file, None, "with tls: our certificate in PEM", shown="none")
    option(parser, "--key", file, None, "with tls: its key in PEM", shown="in the same file")
    option(parser, "--token-file", file, None, "file with the token to authenticate with", shown="none")


def server_of(options: argparse.Namespace) -> Server:
    """The server that these options name. Ends the program if a file cannot be used."""
    target: _Target = options.to
    if not target.tls and options.typed & {"ca", "cert", "key"}:
        options.parser.error("--ca, --cert and --key need --to tls:HOST:PORT")
    context = _context(options.ca, options.cert, options.key) if target.tls else None
    token = _token(options.token_file) if options.token_file else None
    return Server(target.host, target.port, context, token)


def _is_socket(path: Path) -> bool:
    try:
        return path.is_socket()
    except PermissionError:  # its folder is another user's
        return False


def _target(text: str) -> _Target:
    if text.startswith(_UNIX) and len(text) > len(_UNIX):
        return _Target(str(Path(text.removeprefix(_UNIX)).absolute()), 0)
    try:
        return _Target(*address(text.removeprefix(_TLS)), tls=text.startswith(_TLS))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected HOST:PORT, tls:HOST:PORT or unix:PATH, got {text!r}") from None


def _context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    if key and not certificate:
        _give_up("--key needs --cert")
    context = ssl.create_default_context()
    try:
        if ca:
            _look_into(ca)
            context = ssl.create_default_context(cafile=ca)
        if certificate:
            _look_into(certificate)
            if key:
                _look_into(key)
            openssl.add_certificate(context, certificate, key)
    except openssl.EncryptedKey:
        _give_up(f"{key or certificate}: the key is encrypted")
    except ssl.SSLError as error:
        files = ", ".join(str(one) for one in (ca, certificate, key) if one)
        _give_up(f"cannot use {files}: {reason(error)}")
    return context


def _token(path: Path) -> str:
    token = _look_into(path).decode(errors="replace").strip()
    if not token.isprintable() or not token.isascii() or " " in token or not 0 < len(token) <= MAX_TOKEN:
        _give_up(f"{path} (--token-file): expected a token, alone")
    return token


def _look_into(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        _give_up(f"{path}: {reason(error)}")


def _give_up(why: str) -> NoReturn:
    raise SystemExit(complain(why))
