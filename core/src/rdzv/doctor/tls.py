"""Whether a target speaks TLS, and whether its certificate is one that clients will trust.

All of it is the standard library's. It decodes only certificates that it trusts, so the one that
a server shows is trusted for one connection: that tells its names and dates whoever issued it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rdzv.diagnosis import Finding, Target, Tls
from rdzv.options import written_host

from .bounded import reason
from .ports import connect

__all__ = ["check_tls"]

_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which the ssl module has no name."""

_ALERT = b"\x15\x03"
"""What a server of TLS answers that was not spoken to in TLS begins with."""

_SOON = 14 * 86400
"""Seconds before its end at which a certificate is worth a warning."""

_SETTLING = 0.3
"""Seconds that a server has to refuse a client without a certificate, after TLS 1.3's handshake."""


def check_tls(target: Target, address: str, limit: float) -> Iterator[Finding]:
    """Look at one address of a target that accepts connections."""
    where = written_host([(target.host, target.port)])
    try:
        if target.tls is None:
            yield from _check_plain(target, address, where, limit)
        else:
            yield from _Check(target, target.tls, address, where, limit).findings()
    except (OSError, ValueError) as exc:
        yield Finding(
            "tls.failed",
            "error",
            f"TLS with {where} failed: {reason(exc)}.",
            "Look at the server's log. Files of this client's that are damaged, and a proxy "
            "between it and the server, are usual reasons.",
        )


def _check_plain(target: Target, address: str, where: str, limit: float) -> Iterator[Finding]:
    if not target.greeting or _answers_plain(target, address, limit):
        return
    context = _context()
    with contextlib.suppress(OSError), _handshake(context, target, address, limit):
        yield Finding(
            "tls.wanted",
            "error",
            f"{where} speaks TLS, and the endpoint and the settings ask for none.",
            "Ask for it, by the endpoint's scheme or by giving ca_cert.",
        )


def _answers_plain(target: Target, address: str, limit: float) -> bool:
    with contextlib.suppress(OSError), connect(address, target.port, limit) as plain:
        plain.sendall(target.greeting)
        answer = plain.recv(64)
        return bool(answer) and not answer.startswith(_ALERT)
    return False


def _context(tls: Tls | None = None, trusted: str | None = None) -> ssl.SSLContext:
    """Of a client that trusts everybody, or whose certificate is the PEM text ``trusted``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if trusted is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=trusted)
        # Python 3.13 is strict by default, and gRPC and older ones are not.
        context.verify_flags = ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    if tls is not None and tls.cert:
        context.load_cert_chain(tls.cert, tls.key or tls.cert)
    return context


@contextlib.contextmanager
def _handshake(
    context: ssl.SSLContext, target: Target, address: str, limit: float
) -> Iterator[ssl.SSLSocket]:
    with connect(address, target.port, limit) as plain:
        plain.settimeout(limit)
        with context.wrap_socket(plain, server_hostname=target.host) as secure:
            yield secure


@dataclass(frozen=True)
class _Check:
    target: Target
    tls: Tls
    address: str
    where: str
    limit: float

    def findings(self) -> Iterator[Finding]:
        try:
            certificate = self._shown()
        except (OSError, ssl.SSLError) as exc:
            yield self._no_handshake(exc)
            return
        wrong = list(self._problems(certificate))
        if not wrong and (text := self._refusal(self._real())) is not None:
            # An intermediate certificate may be what is out of date, say.
            wrong = [self._untrusted(text)]
        yield from wrong
        if not wrong:
            yield from self._sound(certificate)

    def _shown(self) -> dict[str, Any]:
        """The server's certificate, decoded; it is the client's that is in question here too."""
        with self._open(_context(self.tls)) as secure:
            version = secure.version()
            der = secure.getpeercert(binary_form=True) or b""
            secure.settimeout(min(_SETTLING, self.limit))
            with contextlib.suppress(socket.timeout):
                # In TLS 1.3 a server that wants a certificate says so when all else is done.
                secure.recv(1)
        pem = ssl.DER_cert_to_PEM_cert(der)
        with self._open(_context(self.tls, pem)) as secure:
            found: dict[str, Any] = secure.getpeercert() or {}
        return {**found, "pem": pem, "version": version}

    def _open(self, context: ssl.SSLContext) -> contextlib.AbstractContextManager[ssl.SSLSocket]:
        return _handshake(context, self.target, self.address, self.limit)

    def _no_handshake(self, exc: Exception) -> Finding:
        said = reason(exc)
        if "CERTIFICATE_REQUIRED" in said.upper() or "certificate required" in said.lower():
            return Finding(
                "tls.client-certificate",
                "error",
                f"{self.where} wants a certificate of this client's, and none is given.",
                "Give one with ssl_cert and ssl_cert_key, or have the server ask for none.",
            )
        if "ALERT" in said.upper() and self.tls.cert:
            return Finding(
                "tls.client-certificate",
                "error",
                f"{self.where} does not accept this client's certificate {self.tls.cert}: {said}.",
                "Give one (ssl_cert, ssl_cert_key) from an authority that the server trusts and "
                "that is in its time.",
            )
        if self.target.greeting and _answers_plain(self.target, self.address, self.limit):
            return Finding(
                "tls.not-spoken",
                "error",
                f"{self.where} does not speak TLS, and the endpoint or the settings ask for it.",
                "Switch TLS on at the server, or leave it out here: another scheme in the "
                "endpoint, no ca_cert and no ssl_cert.",
            )
        return Finding(
            "tls.failed",
            "error",
            f"TLS with {self.where} failed: {said}.",
            "See whether TLS is spoken at that port, in a version that this Python has "
            f"({ssl.OPENSSL_VERSION}), and look at the server's log.",
        )

    def _problems(self, certificate: dict[str, Any]) -> Iterator[Finding]:
        # The clock is left out here: what is wrong with the dates is said apart.
        context = self._real()
        context.verify_flags |= _NO_CHECK_TIME
        context.check_hostname = False
        if (text := self._refusal(context)) is not None:
            yield self._untrusted(text, certificate)
        if self.tls.check_hostname and (text := self._wrong_name(certificate)) is not None:
            yield Finding(
                "tls.wrong-name",
                "error",
                f"The certificate of {self.where} is not for {self.target.host}: it is for "
                f"{_names(certificate)}.",
                "Give the endpoint by a name that is in the certificate, or have one issued that "
                "has this one (subjectAltName).",
            )
        now = time.time()
        begins, ends = _seconds(certificate, "notBefore"), _seconds(certificate, "notAfter")
        if now > ends:
            yield Finding(
                "tls.expired",
                "error",
                f"The certificate of {self.where} has expired on {_date(ends)}.",
                "Renew it and have the server load it. If that date has not come yet, this "
                f"machine's clock is wrong: it says {_date(now)}.",
            )
        elif now < begins:
            yield Finding(
                "tls.not-yet-valid",
                "error",
                f"The certificate of {self.where} is valid from {_date(begins)} on.",
                f"Set this machine's clock, which says {_date(now)}, or have the certificate "
                "issued anew.",
            )

    def _sound(self, certificate: dict[str, Any]) -> Iterator[Finding]:
        ends = _seconds(certificate, "notAfter")
        yield Finding(
            "tls.sound",
            "ok",
            f"{self.where} speaks {certificate['version']}; its certificate is for "
            f"{_names(certificate)}, from {_name(certificate.get('issuer'))}, until {_date(ends)}.",
        )
        if ends - time.time() < _SOON:
            yield Finding(
                "tls.ends-soon",
                "warning",
                f"The certificate of {self.where} expires on {_date(ends)}.",
                "Renew it before: from then on no node can connect.",
            )
        if not self.tls.check_hostname:
            yield Finding(
                "tls.names-unchecked",
                "note",
                f"Whether the certificate is for {self.target.host} is not checked "
                "(ssl_check_hostname=false): whoever has any certificate of that authority can "
                "pose as the server.",
            )

    def _real(self) -> ssl.SSLContext:
        """As the backend's client has it."""
        context = ssl.create_default_context(cafile=self.tls.ca_cert)
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
        context.check_hostname = self.tls.check_hostname
        if self.tls.cert:
            context.load_cert_chain(self.tls.cert, self.tls.key or self.tls.cert)
        return context

    def _refusal(self, context: ssl.SSLContext) -> str | None:
        """Why the server's certificate does not pass; ``None`` if it does."""
        try:
            with self._open(context):
                return None
        except ssl.SSLCertVerificationError as exc:
            return exc.verify_message

    def _wrong_name(self, certificate: dict[str, Any]) -> str | None:
        context = _context(self.tls, certificate["pem"])
        context.check_hostname = True
        return self._refusal(context)

    def _untrusted(self, text: str, certificate: dict[str, Any] | None = None) -> Finding:
        by = f" It is from {_name(certificate.get('issuer'))}." if certificate else ""
        whom = f"the certificates in {self.tls.ca_cert}" if self.tls.ca_cert else "this system"
        return Finding(
            "tls.untrusted",
            "error",
            f"The certificate of {self.where} does not lead to one that is trusted by {whom}: "
            f"{text}.{by}",
            "Give the certificate of the authority that issued it as ca_cert (all of them in one "
            "file, where there are several); where one stands between them, the server has to send "
            "it along.",
        )


def _names(certificate: dict[str, Any]) -> str:
    names = [str(value) for _, value in certificate.get("subjectAltName", ())]
    if not names:
        return f"{_name(certificate.get('subject'))}, without alternative names"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _name(parts: Any) -> str:
    """The common name of a subject or an issuer, or its organisation."""
    found = {key: str(value) for group in parts or () for key, value in group}
    for key in ("commonName", "organizationName"):
        if found.get(key):
            return repr(found[key])
    return "somebody without a name"


def _seconds(certificate: dict[str, Any], which: str) -> float:
    return float(ssl.cert_time_to_seconds(certificate[which]))


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
