"""CA certificates in PEM files, and OpenSSL errors as text. The compiler uses it too, so it imports no code for connections."""

import re
import ssl

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")


def certificates(text: str) -> str:
    """The certificates in the text of a PEM file, without the text around them. ValueError if none can be used."""
    pem = "\n".join(_CERTIFICATE.findall(text))
    if not pem:
        raise ValueError("it has no certificate")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except ssl.SSLError as error:
        raise ValueError(f"it has a certificate that cannot be read: {reason(error)}") from None
    return pem


def reason(error: ssl.SSLError) -> str:
    """The reason of an OpenSSL error in lower-case words."""
    return (error.reason or str(error)).lower().replace("_", " ")
