"""Certificates of authorities in PEM files, and OpenSSL's reasons in words. It opens no socket: the compiler uses it too."""

import re
import ssl

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")


def certificates(text: str) -> str:
    """The certificates in a PEM file, without what stands around them. ValueError when there is none of use."""
    found = "\n".join(_CERTIFICATE.findall(text))
    if not found:
        raise ValueError("there is no certificate in it")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found)
    except ssl.SSLError as error:
        raise ValueError(f"a certificate in it cannot be read: {reason(error)}") from None
    return found


def reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
