"""What keeps a part of the cluster from connecting with another one that has the same files.

A handshake with itself, in memory: OpenSSL judges authority, dates, purposes and names by
the rules that it applies between two machines.
"""

from __future__ import annotations

import ssl

from stream2llm.security.certificates import Certificates, show, trust

# Each side writes at most twice.
_MAX_TURNS = 10


def peer_problem(certificates: Certificates, name: str) -> str:
    """Why a peer at this name or address is refused; "" if it is not.

    Both sides show the certificate, and trust the cluster's authority alone.
    """
    client = _context(certificates, ssl.PROTOCOL_TLS_CLIENT)
    server = _context(certificates, ssl.PROTOCOL_TLS_SERVER)
    server.verify_mode = ssl.CERT_REQUIRED
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    try:
        for _ in range(_MAX_TURNS):
            ends = [end for end in ends if not _is_done(end)]
            if not ends:
                return ""
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError as error:
        return str(error)
    return "the handshake does not end"


def _context(certificates: Certificates, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    trust(context, certificates.ca)
    show(context, certificates.certificate, certificates.key)
    return context


def _is_done(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
