"""The folder of a cluster on one machine: made once, read again afterwards, held by one process.

What must hold: what is in the folder is never made anew, and files of parts that a person changed stay as
they are; another count of nodes than it was made with is refused with what would be right; secrets are this
user's alone.
"""

import fcntl
import os
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from holdfast.base.errors import Busy, InvalidInput
from holdfast.base.randomness import Randomness
from holdfast.base.sealed import NOT_JSON, is_spoiled, seal
from holdfast.cluster.secret import split_secrets
from holdfast.cluster.telling import balancer_secret
from holdfast.up.layout import BALANCERS, ETCD_MEMBERS, HOST, NODES_MAX, Shape, files

FILE_NAME = "cluster.json"
SECRET_NAME = "secret"  # noqa: S105 - a file's name


class Home:
    """Holds the folder. The balancers of a new one get `port` and the following where they are free, any with
    port 0. Raises InvalidInput, Busy."""

    def __init__(
        self, path: Path, nodes: int | None, regions: int | None, port: int, randomness: Randomness
    ) -> None:
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise Busy(
                f"The cluster in {path} runs already.",
                hint="Stop it first, or name another folder with --dir.",
            ) from None
        try:
            self.shape = _shape(path, nodes, regions, port)
            self.secret = _secret(path / SECRET_NAME, randomness)
            self._write()
        except BaseException:
            self.close()
            raise

    def _write(self) -> None:
        for file, text in files(self.shape, self.path, balancer_secret(self.secret)).items():
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                _put(file, text.encode())
        (self.path / "etcd").mkdir(exist_ok=True)
        for number in range(1, ETCD_MEMBERS + 1):
            # etcd refuses a folder that others can enter.
            (self.path / "etcd" / f"e{number}").mkdir(mode=0o700, exist_ok=True)
        (self.path / "logs").mkdir(exist_ok=True)

    def close(self) -> None:
        """Let go."""
        os.close(self._lock)


def _shape(path: Path, nodes: int | None, regions: int | None, port: int) -> Shape:
    file = path / FILE_NAME
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        count = 3 if nodes is None else nodes
        made = _new_shape(count, min(count, 3) if regions is None else regions, port)
        _put(file, seal(made))
        return made
    try:
        if is_spoiled(raw):
            raise msgspec.DecodeError("its checksum does not fit")
        content = msgspec.json.decode(raw)
        content.pop("crc32c", None)
        found = msgspec.convert(content, Shape)
    except (*NOT_JSON, AttributeError) as error:
        raise InvalidInput(
            f"{file} cannot be read: {error}.", hint="Put it back, or name another folder with --dir."
        ) from None
    for name, asked, there in (("nodes", nodes, found.nodes), ("regions", regions, found.regions)):
        if asked is not None and asked != there:
            raise InvalidInput(
                f"The cluster in {path} was made with {there} {name}, not {asked}:",
                hint=f"leave --{name} out, or name another folder with --dir.",
            )
    return found


def _new_shape(nodes: int, regions: int, port: int) -> Shape:
    if not 1 <= nodes <= NODES_MAX:
        raise InvalidInput(f"{nodes} nodes are not possible here:", hint=f"say --nodes 1 to {NODES_MAX}.")
    if not 1 <= regions <= nodes:
        raise InvalidInput(
            f"{nodes} nodes cannot be in {regions} regions:", hint=f"say --regions 1 to {nodes}."
        )
    with ExitStack() as stack:
        # All at once, so that no port is given twice.
        pairs = [(_free_port(stack), _free_port(stack)) for _ in range(ETCD_MEMBERS + nodes)]
        balancers = tuple(_free_port(stack, port and port + number) for number in range(BALANCERS))
    return Shape(nodes, regions, tuple(pairs[:ETCD_MEMBERS]), tuple(pairs[ETCD_MEMBERS:]), balancers)


def _free_port(stack: ExitStack, wanted: int = 0) -> int:
    taken = stack.enter_context(socket.socket())
    if wanted:
        # As whoever listens there does: connections that were closed a minute ago do not count.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            taken.bind((HOST, wanted))
            return wanted
        taken = stack.enter_context(socket.socket())
    taken.bind((HOST, 0))
    return int(taken.getsockname()[1])


def _secret(file: Path, randomness: Randomness) -> bytes:
    try:
        return split_secrets(file.read_bytes())[0]
    except FileNotFoundError:
        made = randomness.token(32).hex().encode()
        _put(file, made + b"\n")
        return made


def _put(file: Path, content: bytes) -> None:
    temporary = file.with_name(f".{file.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(descriptor)
    temporary.replace(file)
