"""Certificates: of clients, revoked, foreign; broken files; and new certificates while the server runs."""

from __future__ import annotations

import signal
import ssl
from pathlib import Path

import pytest

from tests.harness import identities
from tests.harness.certificates import Authority, Pair, openssl
from tests.harness.command_line import aggregator, assert_one_line
from tests.harness.polling import wait_until
from tests.harness.server_process import ServerProcess, StartServer
from tests.harness.tls_peer import TlsPeer, exchange
from tests.harness.wire import event, events


def is_served(port: int, context: ssl.SSLContext) -> bool:
    """Whether a client gets in. With TLS 1.3 a client learns that only when it reads."""
    try:
        return bool(exchange(port, context, b"PING\n"))
    except (ssl.SSLError, ConnectionError):
        return False


def is_stored(server: ServerProcess, context: ssl.SSLContext, event_id: str) -> bool:
    """Whether a client gets in on the silent port, which writes nothing to it: its event is stored then."""
    try:
        exchange(server.tls_silent_port, context, event(event_id))
    except (ssl.SSLError, ConnectionError):
        return False
    return bool(server.ask(f"EVENT t {event_id}")["event"])


@pytest.fixture
def own(tmp_path: Path) -> Authority:
    """A CA for this test alone, because the test revokes certificates."""
    return Authority(tmp_path, "own")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_acked_port_takes_clients_without_a_certificate_and_the_silent_port_does_not(
    start_tls: StartServer, authority: Authority, foreign: Authority, version: ssl.TLSVersion, tmp_path: Path
) -> None:
    known = identities.write(
        tmp_path / "identities", {"name": "true", "cert": [f"DNS:true-{version}"], "publish": ["*"]}
    )
    server = start_tls("--tls-client-ca", str(authority.certificate), "--identities", str(known))
    cases = {
        "none": (authority.trusting(version=version), True, False),
        "true": (authority.trusting(authority.issue(f"true-{version}"), version), True, True),
        "foreign": (authority.trusting(foreign.issue(f"foreign-{version}"), version), False, False),
    }
    for name, (context, acked, silent) in cases.items():
        assert is_served(server.tls_port, context) == acked, name
        if silent:
            exchange(server.tls_silent_port, context, event(name))
            wait_until(lambda name=name: server.ask(f"EVENT t {name}")["event"])  # type: ignore[misc]
        else:
            assert not is_stored(server, context, name), name
    server.wait_for_log("TLS handshake with 127.0.0.1 failed: its certificate is not trusted: ")
    server.wait_for_log("peer did not return a certificate")
    wait_until(lambda: server.ask("STATS")["tls_handshakes"] == {"ok": 3, "failed": 3})
    assert server.stored("t").keys() == {"true"}


def test_revoked_certificates_and_lists_that_are_out_of_date_are_refused(
    start_tls: StartServer, own: Authority, tmp_path: Path
) -> None:
    good, bad, other, pair = own.issue("good"), own.issue("bad"), own.issue("other"), own.server()
    crl = own.revoked(bad)
    known = identities.write(tmp_path / "identities", {"name": "x", "cert": ["DNS:good", "DNS:bad", "DNS:other"]})
    server = start_tls(
        "--tls-client-ca", str(own.certificate), "--tls-crl", str(crl), "--identities", str(known),
        certificate=pair, prefix=("setsid",),
    )  # fmt: skip
    assert is_served(server.tls_port, own.trusting(good))
    assert not is_served(server.tls_port, own.trusting(bad))
    server.wait_for_log("certificate revoked")

    own.revoked(good)  # the same file
    server.signal(signal.SIGHUP)
    server.wait_for_log("reloaded")
    assert not is_served(server.tls_port, own.trusting(good))
    assert is_served(server.tls_port, own.trusting(other))

    own.revoked(days=0)
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.log.count("reloaded") == 2)
    assert not is_served(server.tls_port, own.trusting(other))
    server.wait_for_log("CRL has expired")
    assert is_served(server.tls_port, own.trusting())  # without a certificate


def test_a_name_that_is_no_text_ends_one_client(start_tls: StartServer, own: Authority) -> None:
    """A DNS name in Latin-1, which Python decodes as UTF-8."""
    odd = own.issue("odd", instead_of_names="DER:30:06:82:04:62:FC:72:6F")
    server = start_tls("--tls-client-ca", str(own.certificate), certificate=own.server())
    for _ in range(2):
        assert not is_served(server.tls_port, own.trusting(odd))
        assert is_served(server.tls_port, own.trusting())
    wait_until(lambda: server.ask("STATS")["connections"] == 1)
    server.wait_for_log("TLS port: TLS handshake with 127.0.0.1 failed: its certificate: 'utf-8' codec can't decode")
    assert server.ask("STATS")["tls_handshakes"] == {"failed": 2, "ok": 2}


@pytest.mark.parametrize("tickets", [True, False])
def test_no_session_is_resumed_where_certificates_are_checked(
    start_tls: StartServer, own: Authority, tmp_path: Path, tickets: bool
) -> None:
    known = identities.write(tmp_path / "identities", {"name": "x", "cert": ["DNS:good"], "read": ["*"]})
    server = start_tls("--tls-client-ca", str(own.certificate), "--identities", str(known), certificate=own.server())
    context = own.trusting(own.issue("good"), ssl.TLSVersion.TLSv1_2)
    if not tickets:
        context.options |= ssl.OP_NO_TICKET
    with TlsPeer(server.tls_port, context) as peer:
        assert peer.ask(b"PING\n")["pong"]
        session = peer.tls.session
        assert session
        with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
            TlsPeer(server.tls_port, context, session=session)
        assert peer.ask(b"PING\n")["pong"]
    assert is_served(server.tls_port, context)
    server.wait_for_log("TLS handshake with 127.0.0.1 failed: it resumes a session")


# --- broken files


def broken(folder: Path, pair: Pair, authority: Authority) -> list[tuple[tuple[str, ...], str]]:
    """Options for a server with a TLS port, and what is wrong with each."""
    empty = folder / "empty.pem"
    empty.touch()
    encrypted = folder / "encrypted.key"
    openssl("ec", "-in", pair.key, "-aes256", "-passout", "pass:secret", "-out", encrypted)
    certificate, key = str(pair.certificate), str(pair.key)
    other = str(authority.issue("other").key)
    crl = str(authority.revoked())
    return [
        ((), "a TLS port needs a certificate: set --tls-cert, and --tls-key if the key is in another file"),
        (("--tls-cert", "/nope"), "cannot read /nope (--tls-cert): No such file or directory"),
        (("--tls-cert", "/"), "cannot read / (--tls-cert): Is a directory"),
        (("--tls-cert", certificate, "--tls-key", "/nope"), "cannot read /nope (--tls-key): No such file or directory"),
        (("--tls-cert", certificate), f"cannot use {certificate} (--tls-cert): "),
        (("--tls-cert", str(empty), "--tls-key", key), f"cannot use {empty} (--tls-cert) with {key} (--tls-key): "),
        (("--tls-cert", certificate, "--tls-key", other), "(--tls-key): key values mismatch"),
        (("--tls-cert", certificate, "--tls-key", str(encrypted)), "(--tls-key): the key is encrypted"),
        ((*pair.options, "--tls-client-ca", str(empty)), f"cannot use {empty} (--tls-client-ca): "),
        ((*pair.options, "--tls-crl", crl), "--tls-crl needs --tls-client-ca"),
        (
            (*pair.options, "--tls-client-ca", certificate, "--tls-crl", certificate),
            f"cannot use {certificate} (--tls-crl): expected revocation lists in PEM, and nothing else",
        ),
    ]


def test_a_broken_file_at_the_start_is_one_clear_line(tmp_path: Path, pair: Pair, own: Authority) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    for options, why in broken(tmp_path, pair, own):
        done = aggregator("--port", "0", "--silent-port", "off", "--tls-port", "0", *options, cwd=folder)
        assert_one_line(done, 1, why)
        assert list(folder.iterdir()) == []


def test_a_broken_file_at_a_reload_changes_nothing(
    start_tls: StartServer, tmp_path: Path, authority: Authority, foreign: Authority
) -> None:
    pair = Pair(tmp_path / "cert.pem", tmp_path / "key.pem")
    first, second = authority.issue("first", names="DNS:localhost"), foreign.issue("second", names="DNS:localhost")

    def install(certificate: Path, key: Path) -> None:
        pair.certificate.write_bytes(certificate.read_bytes())
        pair.key.write_bytes(key.read_bytes())

    install(first.certificate, first.key)
    server = start_tls(certificate=pair, prefix=("setsid",))
    with TlsPeer(server.tls_port, authority.trusting()) as old:
        install(second.certificate, first.key)
        server.signal(signal.SIGHUP)
        server.wait_for_log("not reloaded, everything stays as it was: cannot use")
        assert server.ask("STATS")["config_reload_ok"] == 0
        assert is_served(server.tls_port, authority.trusting())

        install(second.certificate, second.key)
        server.signal(signal.SIGHUP)
        server.wait_for_log("reloaded\n")
        assert server.ask("STATS")["config_reload_ok"] == 1
        assert is_served(server.tls_port, foreign.trusting())
        assert not is_served(server.tls_port, authority.trusting())
        assert old.ask(event("e"))["status"] == "stored"
    assert server.log.count("ERROR") == 1


def test_reloads_under_load_drop_nobody(start_tls: StartServer, authority: Authority) -> None:
    server = start_tls(prefix=("setsid",))
    with TlsPeer(server.tls_port, authority.trusting()) as peer:
        for number in range(20):
            peer.send(b"".join(events(f"e{number}", 500)))
            server.signal(signal.SIGHUP)
            assert all(peer.reply()["status"] == "stored" for _ in range(500))
    server.wait_for_log("reloaded")
    assert server.ask("STATS")["connections_total"] == 1 + 1
