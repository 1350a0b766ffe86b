"""Certificates to TLS contexts. They are loaded as a whole, and replaced as a whole: a broken file changes nothing.

(``load_cert_chain`` on a context in use replaces the certificate before it finds that the key does not match.)
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aggregator import openssl
from aggregator.config import Config
from aggregator.server.port import Port
from aggregator.server.reload import CannotLoad, read

_CRL_START: Final = b"-----BEGIN X509 CRL-----"  # RFC 7468, section 6
_CERTIFICATE_START: Final = b"-----BEGIN CERTIFICATE-----"  # the same, section 5


class Contexts:
    """The TLS contexts of one server: one for ports that reply, and one for silent ports.

    A silent port cannot tell a client that its certificate is missing. So if there is a client CA, each client of a
    silent port must have a certificate.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._replying: ssl.SSLContext
        self._silent: ssl.SSLContext
        self._authorities: list[bytes] | None = None
        self.on_other_authorities: Callable[[], None] = lambda: None
        """Called when client certificates are verified by other authorities, or other revocation lists, than before."""

    def of(self, port: Port) -> ssl.SSLContext:
        """The context for the next client of this port."""
        return self._replying if port.replies else self._silent

    def load(self) -> Callable[[], None]:
        """Read all files; return a function that puts them in force for new clients. Raises CannotLoad."""
        config = self._config
        # Read before OpenSSL reads the same files: one that changes in between counts as changed at the next reload.
        options = {"--tls-client-ca": config.tls_client_ca, "--tls-crl": config.tls_crl}
        authorities = [read(path, option) for option, path in options.items() if path]
        replying = _context(config, ssl.CERT_OPTIONAL)
        silent = _context(config, ssl.CERT_REQUIRED)

        def swap() -> None:
            before = self._authorities
            self._replying, self._silent, self._authorities = replying, silent, authorities
            if before is not None and before != authorities:
                self.on_other_authorities()

        return swap


def _context(config: Config, verify_mode: ssl.VerifyMode) -> ssl.SSLContext:
    if config.tls_cert is None:
        raise CannotLoad("a TLS port needs a certificate: set --tls-cert, and --tls-key if the key is in another file")
    if config.tls_crl and not config.tls_client_ca:
        raise CannotLoad("--tls-crl needs --tls-client-ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client that only writes would leave a TLS 1.3 ticket unread. Its close would then send a reset, which destroys
    # what it has sent just before.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_RENEGOTIATION
    _add_certificate(context, config.tls_cert, config.tls_key)
    if config.tls_client_ca:
        _add_client_ca(context, config.tls_client_ca)
        context.verify_mode = verify_mode
        context.sni_callback = _refuse_resumption
    if config.tls_crl:
        _add_crl(context, config.tls_crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def _refuse_resumption(tls: ssl.SSLObject, server_name: str | None, context: ssl.SSLContext) -> int | None:
    """End a handshake that resumes an earlier session, because no certificate is checked again then.

    TLS 1.2 offers resumption for two hours, and Python cannot switch it off. An alert makes the client forget its
    session. (OpenSSL calls this function for every handshake, whether or not the client names a server.)
    """
    return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE if tls.session_reused else None


def _add_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    named = f"{certificate} (--tls-cert)" + (f" with {key} (--tls-key)" if key else "")
    read(certificate, "--tls-cert")
    if key:
        read(key, "--tls-key")
    try:
        openssl.add_certificate(context, certificate, key)
    except openssl.EncryptedKey:
        raise CannotLoad(f"cannot use {named}: the key is encrypted") from None
    except ssl.SSLError as error:
        raise CannotLoad(f"cannot use {named}: {openssl.reason(error)}") from error


def _add_client_ca(context: ssl.SSLContext, path: Path) -> None:
    read(path, "--tls-client-ca")
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise CannotLoad(f"cannot use {path} (--tls-client-ca): {openssl.reason(error)}") from error


def _add_crl(context: ssl.SSLContext, path: Path) -> None:
    text = read(path, "--tls-crl")
    # OpenSSL takes whatever is in the file: a certificate there would be one more CA.
    if _CRL_START not in text or _CERTIFICATE_START in text:
        raise CannotLoad(f"cannot use {path} (--tls-crl): expected revocation lists in PEM, and nothing else")
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise CannotLoad(f"cannot use {path} (--tls-crl): {openssl.reason(error)}") from error
