"""The head of an HTTP/1.1 request, as strictly as RFC 9112 allows. No I/O.

What must hold, because a proxy in front may read the same bytes: a head has exactly one meaning or is
refused. So lines end in CR LF; names are tokens directly followed by a colon; there is no folding; one
Host; one Content-Length of digits, or `Transfer-Encoding: chunked`, never both. The request target is
kept as it came: keys are not normalised, and signatures are made over what was sent.
"""

import re
from typing import NamedTuple

HEAD_BYTES_MAX = 32 << 10
TARGET_BYTES_MAX = 16 << 10
LENGTH_DIGITS_MAX = 18

_REQUEST_LINE = re.compile(r"([A-Z]{1,20}) ([!-~]+) HTTP/1\.([01])\Z")
_FIELD = re.compile(r"^([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\x00-\x08\n-\x1f\x7f]*)\r\n", re.MULTILINE)
_DIGITS = re.compile(r"[0-9]+\Z")
_AUTHORITY = re.compile(r"[A-Za-z0-9.\-_~:\[\]%]*\Z")

SINGLE = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "authorization",
        "content-md5",
        "content-type",
        "date",
        "expect",
        "range",
    }
)
"""Headers of which a second one is an attempt to be read in two ways. Applications add their own."""


class HeadError(NamedTuple):
    """Why a head was refused. `status` is 400, 414, 417 or 501."""

    status: int
    reason: str


class Head(NamedTuple):
    """A request's head. Names in lower case; a name that came several times has its values joined by
    commas. `path` and `query` are as sent, percent-encoded. `length` is None when not announced."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    length: int | None
    chunked: bool
    keep_alive: bool
    expects_continue: bool


def parse_head(raw: bytes, single: frozenset[str] = SINGLE) -> Head | HeadError:
    """Read a head. `raw` ends with the last header's CR LF, without the empty line. A header of `single` may
    come once."""
    try:
        text = raw.decode("ascii" if raw.isascii() else "utf-8")
    except UnicodeDecodeError:
        return HeadError(400, "Header values must be UTF-8.")
    end = text.find("\r\n")
    line = _REQUEST_LINE.match(text[:end])
    if line is None:
        return HeadError(400, "The request line is not that of HTTP/1.1.")
    method, target, minor = line.groups()
    if len(target) > TARGET_BYTES_MAX:
        return HeadError(414, "The request target is too long.")
    fields = text[end + 2 :]
    found = _FIELD.findall(fields)
    if len(found) != fields.count("\n"):
        return HeadError(400, "A header line is not well-formed.")
    headers: dict[str, str] = {}
    for raw_name, value in found:
        name = raw_name.lower()
        value = value.strip(" \t")
        if name in headers:
            if name in single:
                return HeadError(400, f"The header {name} came more than once.")
            value = f"{headers[name]},{value}"
        headers[name] = value
    return _frame(method, target, minor, headers)


def _frame(method: str, target: str, minor: str, headers: dict[str, str]) -> Head | HeadError:
    host = headers.get("host")
    if host is None and minor == "1":
        return HeadError(400, "The Host header is missing.")
    if host is not None and not _AUTHORITY.match(host):
        return HeadError(400, "The Host header is not well-formed.")
    if not target.startswith("/"):
        target = _origin_form(target, host)
        if not target:
            return HeadError(400, "The request target must be a path.")
    if "#" in target:
        return HeadError(400, "The request target must not have a fragment.")
    length: int | None = None
    if (announced := headers.get("content-length")) is not None:
        if not _DIGITS.match(announced) or len(announced) > LENGTH_DIGITS_MAX:
            return HeadError(400, "Content-Length must be a whole number.")
        length = int(announced)
    chunked = False
    if (coding := headers.get("transfer-encoding")) is not None:
        if length is not None:
            return HeadError(400, "A request has Content-Length or Transfer-Encoding, not both.")
        if minor == "0":
            return HeadError(400, "HTTP/1.0 knows no Transfer-Encoding.")
        if coding.lower() != "chunked":
            return HeadError(501, "The only transfer coding known is chunked.")
        chunked = True
    connection = headers.get("connection", "").lower()
    keep_alive = minor == "1" and "close" not in connection
    expect = headers.get("expect")
    if expect is not None and expect.lower() != "100-continue":
        return HeadError(417, "The only expectation known is 100-continue.")
    path, _, query = target.partition("?")
    return Head(
        method, path, query, headers, length, chunked, keep_alive, expect is not None and minor == "1"
    )


def _origin_form(target: str, host: str | None) -> str:
    """The path of an absolute target (`http://host/path`), where it names the same host; else ''."""
    scheme, separator, rest = target.partition("://")
    if not separator or scheme.lower() not in {"http", "https"}:
        return ""
    authority, slash, path = rest.partition("/")
    if not slash or host is None or authority.lower() != host.lower():
        return ""
    return "/" + path
