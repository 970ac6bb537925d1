"""ISA-L, which multiplies in GF(2^8), called as it is: over memory where it lies, without copies.

The library comes with PyECLib's wheel; where PyECLib was built from source, the system has it. A `Table`
makes some units of a stripe from k others. What must hold: every address that the library is given belongs
to a buffer of the length that it is told, which is held and cannot move until it returns.

The interpreter lock is kept for the 20 microseconds that a stripe takes: to get it back may cost more, beside
threads that want it. Only who works in a thread lets go of it.

The matrix is that of liberasurecode's `isa_l_rs_cauchy`: the identity, and below it 1 / (i ^ j) for row
i >= k and column j. Any k of its rows can be inverted.
"""

import ctypes
import ctypes.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from holdfast.base.checksums import Buffer
from holdfast.base.errors import InvalidInput
from holdfast.scheme import Scheme

_SYSTEM_NAMES = ("libisal.so.2", "libisal.2.dylib")
_TABLE_BYTES = 32
"""What the library makes of each coefficient."""


class _View(ctypes.Structure):
    """`Py_buffer`, as the stable ABI of Python 3.11 has it."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_READABLE, _WRITABLE = 0, 1

_look = ctypes.pythonapi.PyObject_GetBuffer
_look.argtypes = (ctypes.py_object, ctypes.POINTER(_View), ctypes.c_int)
_look.restype = ctypes.c_int
_let_go = ctypes.pythonapi.PyBuffer_Release
_let_go.argtypes = (ctypes.POINTER(_View),)
_let_go.restype = None


class Table:
    """Makes units of other units of the same stripe: `of(basis, wanted)` of a scheme."""

    __slots__ = ("_from", "_table", "_to")

    def __init__(self, coefficients: Sequence[Sequence[int]]) -> None:
        self._from, self._to = len(coefficients[0]), len(coefficients)
        flat = bytes(value for row in coefficients for value in row)
        self._table = ctypes.create_string_buffer(_TABLE_BYTES * len(flat))
        _library().ec_init_tables(self._from, self._to, flat, self._table)

    def make(
        self,
        sources: Sequence[Buffer],
        results: Sequence[bytearray | memoryview],
        size: int,
        *,
        in_thread: bool = False,
    ) -> None:
        """Fill `results` from `sources`, all of `size` bytes; `in_thread` lets go of the interpreter lock."""
        assert len(sources) == self._from
        assert len(results) == self._to
        with _held(sources, size, _READABLE) as given, _held(results, size, _WRITABLE) as made:
            multiply = _library(in_thread).ec_encode_data
            multiply(size, self._from, self._to, self._table, given, made)


@contextmanager
def _held(buffers: Sequence[Buffer], size: int, access: int) -> Iterator[ctypes.Array[ctypes.c_void_p]]:
    """Where buffers lie; none can be resized or freed meanwhile."""
    views: list[_View] = []
    addresses = (ctypes.c_void_p * len(buffers))()
    try:
        for at, buffer in enumerate(buffers):
            view = _View()
            _look(buffer, view, access)
            views.append(view)
            assert view.len == size, "units of one stripe differ in length"
            addresses[at] = view.buf
        yield addresses
    finally:
        for view in views:
            _let_go(view)


@lru_cache(maxsize=4096)
def table(scheme: Scheme, basis: tuple[int, ...], wanted: tuple[int, ...]) -> Table:
    """What makes the units of shards `wanted` from those of the k shards `basis`."""
    assert len(basis) == scheme.k
    k, library = scheme.k, _library()
    flat = bytes(value for shard in basis for value in _row(k, shard))
    inverse = ctypes.create_string_buffer(k * k)
    if library.gf_invert_matrix(ctypes.create_string_buffer(flat, k * k), inverse, k) != 0:
        raise AssertionError(f"shards {basis} of {scheme.name} do not determine the others")
    columns = [inverse.raw[at::k] for at in range(k)]
    return Table([[_product(_row(k, shard), column) for column in columns] for shard in wanted])


def prepare() -> None:
    """Load the library. Raises InvalidInput when there is none."""
    _library()


def _row(k: int, shard: int) -> list[int]:
    """What makes a shard's unit from the k units of data."""
    if shard < k:
        return [int(column == shard) for column in range(k)]
    inverse = _library().gf_inv
    return [inverse(shard ^ column) for column in range(k)]


def _product(row: Sequence[int], column: Sequence[int]) -> int:
    multiply, total = _library().gf_mul, 0
    for one, other in zip(row, column, strict=True):
        total ^= multiply(one, other)
    return total


@cache
def _library(lets_go: bool = False) -> ctypes.CDLL:
    """The library, whose calls let go of the interpreter lock or keep it."""
    for name in _names():
        try:
            found = ctypes.CDLL(name) if lets_go else ctypes.PyDLL(name)
        except OSError:
            continue
        found.gf_inv.argtypes, found.gf_inv.restype = (ctypes.c_ubyte,), ctypes.c_ubyte
        found.gf_mul.argtypes, found.gf_mul.restype = (ctypes.c_ubyte, ctypes.c_ubyte), ctypes.c_ubyte
        found.gf_invert_matrix.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
        found.gf_invert_matrix.restype = ctypes.c_int
        found.ec_init_tables.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)
        found.ec_init_tables.restype = None
        addresses = ctypes.POINTER(ctypes.c_void_p)
        found.ec_encode_data.argtypes = (
            *(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_char_p),
            *(addresses, addresses),
        )
        found.ec_encode_data.restype = None
        return found
    raise InvalidInput(
        "The library for Reed-Solomon, ISA-L, is not there.",
        hint="Install PyECLib from its wheel, or the system's libisal2.",
    )


def _names() -> Iterator[str]:
    spec = find_spec("pyeclib")
    if spec is not None and spec.origin is not None:
        package = Path(spec.origin).parent
        for folder in (package.with_name("pyeclib.libs"), package / ".dylibs"):
            yield from sorted(str(path) for path in folder.glob("libisal*"))
    yield from _SYSTEM_NAMES
    if (found := ctypes.util.find_library("isal")) is not None:
        yield found
