"""Access control of the servers: listening addresses, API keys and TLS certificates."""

import hmac
import ipaddress
import logging
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path


def read_api_key(path: str | Path) -> str:
    """The API key in the first line of a file.

    Raises:
        ValueError: the key has fewer than 16 characters, or characters that are not ASCII.
    """
    lines = Path(path).read_text().splitlines()
    key = lines[0].strip() if lines else ""
    if len(key) < 16 or not key.isascii():
        raise ValueError(
            f"{path}: the first line has {len(key)} characters; expected a key of 16 or more ASCII characters"
        )
    return key


def is_loopback(host: str) -> bool:
    """Whether a listening address can be reached from this machine only.

    Raises:
        ValueError: `host` can't be resolved to an address.
    """
    try:
        found = socket.getaddrinfo(host, None) if host else []  # an empty host listens on all interfaces
    except socket.gaierror as error:
        raise ValueError(f"--host {host}: {error.strerror}; give an address of this machine") from None
    return bool(found) and all(ipaddress.ip_address(address[4][0]).is_loopback for address in found)


def tls_context(cert: str | Path | None, key: str | Path | None) -> ssl.SSLContext | None:
    """A server context for TLS 1.2 or newer, with this certificate chain and private key (PEM files); None if neither is given.

    Raises:
        ValueError: only one of the two is given, a file can't be read, or they don't match.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ValueError("--tls-cert and --tls-key belong together; give both")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(
            f"--tls-cert {cert}, --tls-key {key}: {error}; expected a matching pair of PEM files"
        ) from None
    return context


def trusted(ca: str | Path | None = None) -> ssl.SSLContext:
    """A client context for TLS 1.2 or newer that trusts the system's certificate authorities, or only those in `ca` (PEM file).

    Raises:
        ValueError: the file can't be read or holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{ca}: {error}; expected a file of certificates (PEM)") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def warn_of_plain_text(logger: logging.Logger, host: str, what: str) -> None:
    """Log a warning for an unencrypted connection, unless `host` is this machine; `what` names the connection."""
    try:
        local = is_loopback(host)
    except ValueError:  # not an address: the attempt to connect reports it
        return
    if not local:
        logger.warning(
            "%s: the connection is not encrypted; anyone on the network can read and change the key, images and commands; use wss://",
            what,
        )


def key_fits(headers: Sequence[str], api_key: str | None) -> bool:
    """Whether a request may connect: it has exactly one `Authorization` header, with the value `Api-Key <api_key>`.

    Always True if the server has no key. The comparison takes constant time, so its duration reveals nothing about the key.
    """
    if api_key is None:
        return True
    expected = f"Api-Key {api_key}".encode()
    return len(headers) == 1 and hmac.compare_digest(headers[0].encode("utf-8", "surrogateescape"), expected)
