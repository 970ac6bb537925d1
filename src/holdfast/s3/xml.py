"""XML in and out, and no more of it than S3 needs.

In: expat, fed piece by piece so that a long document never holds the event loop, with document types
refused before they can declare an entity; size, depth, the number of elements and the length of a tag are
bounded. Out: strings, escaped exactly. A
key may hold characters that XML 1.0 cannot carry; like S3, they are written as character references,
and clients that want to be safe ask for `encoding-type=url`.
"""

import re
from collections.abc import Iterator
from urllib.parse import quote
from xml.parsers import expat

DOCUMENT_BYTES_MAX = 1 << 20
LONG_DOCUMENT_BYTES_MAX = 2 << 20
"""For lists that a client may fill with 1,000 keys of 1,024 bytes or 10,000 parts."""

DEPTH_MAX = 16
TEXT_CHARACTERS_MAX = 16 << 10
ELEMENTS_MAX = 90_000
"""10,000 parts, each with its number, its ETag and all five checksums, are 80,001."""

TOKEN_BYTES_MAX = 8 << 10
"""The longest tag or comment. S3 knows no attribute worth more, and a long one is one long step."""

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"

_SPECIAL = re.compile('[&<>"\r\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]')
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;"}


class MalformedXml(Exception):
    """Not well formed, too large, too deep, or with a document type."""


class Element:
    """One element: its local name, its children in order, and the text directly in it."""

    __slots__ = ("children", "name", "text")

    def __init__(self, name: str) -> None:
        self.name = name
        self.children: list[Element] = []
        self.text = ""

    def find(self, name: str) -> "Element | None":
        """The first child called `name`."""
        return next((child for child in self.children if child.name == name), None)

    def all(self, name: str) -> "Iterator[Element]":
        """All children called `name`."""
        return (child for child in self.children if child.name == name)

    def value(self, name: str) -> str | None:
        """The text of the first child called `name`, or None without one."""
        child = self.find(name)
        return None if child is None else child.text


class XmlReader:
    """Reads one document: `feed` pieces, then `finish`. Raises MalformedXml from either."""

    def __init__(self, bytes_max: int = DOCUMENT_BYTES_MAX) -> None:
        self._left = bytes_max
        self._root: Element | None = None
        self._open: list[Element] = []
        self._text: list[str] = []
        self._text_length = 0
        self._fed = 0
        self._elements = 0
        parser = expat.ParserCreate("UTF-8")
        parser.buffer_text = True
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        self._parser = parser

    def feed(self, data: bytes) -> None:
        """Read on. Pieces of at most TOKEN_BYTES_MAX keep each step short."""
        self._left -= len(data)
        if self._left < 0:
            raise MalformedXml("the document is too large")
        self._fed += len(data)
        self._parse(data, final=False)
        if self._fed - max(self._parser.CurrentByteIndex, 0) > TOKEN_BYTES_MAX:
            raise MalformedXml("a tag or comment is too long")

    def finish(self) -> Element:
        """The root element, when the document was complete."""
        self._parse(b"", final=True)
        if self._root is None or self._open:
            raise MalformedXml("the document has no root element")
        return self._root

    def _parse(self, data: bytes, *, final: bool) -> None:
        try:
            self._parser.Parse(data, final)
        except expat.ExpatError as error:
            raise MalformedXml(str(error)) from error

    def _refuse_doctype(self, *_: object) -> None:
        raise MalformedXml("document types are refused")

    def _start(self, name: str, _attributes: dict[str, str]) -> None:
        if len(self._open) >= DEPTH_MAX:
            raise MalformedXml("the document is too deep")
        self._elements += 1
        if self._elements > ELEMENTS_MAX:
            raise MalformedXml("the document has too many elements")
        element = Element(name.rpartition(":")[2])
        if self._open:
            self._open[-1].children.append(element)
        else:
            self._root = element
        self._open.append(element)
        self._text.clear()
        self._text_length = 0

    def _characters(self, text: str) -> None:
        self._text_length += len(text)
        if self._text_length > TEXT_CHARACTERS_MAX:
            raise MalformedXml("an element has too much text")
        self._text.append(text)

    def _end(self, _name: str) -> None:
        element = self._open.pop()
        if not element.children:
            element.text = "".join(self._text)
        self._text.clear()
        self._text_length = 0


def parse(document: bytes) -> Element:
    """Read a whole document."""
    reader = XmlReader()
    reader.feed(document)
    return reader.finish()


def escape(text: str) -> str:
    """`text` as element content."""
    return _SPECIAL.sub(_reference, text) if _SPECIAL.search(text) else text


def _reference(found: re.Match[str]) -> str:
    character = found[0]
    return _NAMED.get(character) or f"&#x{ord(character):x};"


def url_encode(text: str) -> str:
    """As `encoding-type=url` wants names: percent-encoded UTF-8, the slash kept."""
    return quote(text, safe="/-_.~*", errors="surrogatepass")


def document(root: str, content: str) -> bytes:
    """A whole answer: declaration, root element in S3's namespace, content."""
    return (f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="{NAMESPACE}">{content}</{root}>').encode(
        "utf-8", "surrogatepass"
    )
