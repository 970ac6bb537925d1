"""Real nodes of one cluster: a folder each, one secret, one database of a real PostgreSQL or etcd."""

import itertools
import os
import re
import subprocess
import textwrap
from collections.abc import Mapping
from pathlib import Path

import msgspec

from holdfast.base.clock import SystemClock
from holdfast.cli.client import NodeClient
from holdfast.node.config import make_config
from holdfast.node.config_cluster import Engine
from holdfast.node.config_file import load_config_file
from holdfast.node.credentials import Credentials, from_secret
from holdfast.node.status import Status
from tests.kit.etcd import running_etcd
from tests.kit.postgres import running_server
from tests.kit.process import PROGRAM, NodeProcess, clean_environment, die_with_parent

SECRET = b"the secret of a cluster that lives for one test"

_numbers = itertools.count(1)


class ClusterNode(NodeProcess):
    """One node of a cluster."""

    def __init__(self, home: Path, name: str) -> None:
        super().__init__(home)
        self.name = name

    @property
    def credentials(self) -> Credentials:
        """What every node of the cluster serves under."""
        return from_secret(SECRET)

    def client(self) -> NodeClient:
        """Asks this node."""
        file = self.home / "holdfast.toml"
        return NodeClient(make_config([load_config_file(file)], self.home), SystemClock())

    def status(self) -> Status:
        """What `holdfast status --json` prints."""
        return msgspec.json.decode(self.client().ask("/-/status"), type=Status)


class TestCluster:
    """Folders and a database for the nodes of one test; the nodes are the test's to start and kill."""

    __test__ = False

    def __init__(self, folder: Path, engine: Engine = Engine.POSTGRES) -> None:
        self.folder = folder
        if engine is Engine.ETCD:
            self.index = running_etcd().address()
            return
        self.database = f"cluster_{os.getpid()}_{next(_numbers)}"
        running_server().run(f"CREATE DATABASE {self.database}")
        self.index = running_server().address(self.database)

    @classmethod
    def over(cls, folder: Path, index: str) -> "TestCluster":
        """One whose index is at an address of the test's own."""
        cluster = cls.__new__(cls)
        cluster.folder, cluster.index = folder, index
        return cluster

    def node(
        self, name: str, stores: int = 2, *, secret: bytes = SECRET, more: Mapping[str, str] | None = None
    ) -> ClusterNode:
        """A node that was not started yet. `more` are lines of its file, by table ("" for the top)."""
        home = self.folder / name
        home.mkdir()
        (home / "secret").write_bytes(secret)
        (home / "secret").chmod(0o600)
        tables = {"": "", "cluster": ""} | dict(more or {})
        text = f"""\
            name = "{name}"
            index = "{self.index}"
            {tables.pop("")}
            [cluster]
            secret_file = "secret"
            peer = "127.0.0.1:0"
            {tables.pop("cluster")}
            """
        text = textwrap.dedent(text)
        text += "".join(f"[{table}]\n{lines}\n" for table, lines in tables.items())
        for number in range(1, stores + 1):
            (home / f"d{number}").mkdir()
            text += f'[[store]]\npath = "d{number}"\n'
        (home / "holdfast.toml").write_text(text)
        return ClusterNode(home, name)


class Lender:
    """`holdfast recover --lend` on a node's folder. Use as a context manager; it dies with the block."""

    def __init__(self, node: ClusterNode) -> None:
        self._home = node.home
        self.lines: list[str] = []
        self.peer = ""
        """What to say to `holdfast recover`."""

    def __enter__(self) -> "Lender":
        self._process = subprocess.Popen(
            [PROGRAM, "recover", "--lend"],
            cwd=self._home,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=die_with_parent,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)
            if found := re.search(r"--peer (\S+)", line):
                self.peer = found[1]
                return self
        raise AssertionError(f"nothing is lent:\n{''.join(self.lines)}")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self.wait()

    def wait(self, timeout_s: float = 60) -> int:
        """Its exit code, once it has ended."""
        code = self._process.wait(timeout=timeout_s)
        if self._process.stdout is not None and not self._process.stdout.closed:
            self.lines.extend(self._process.stdout)
            self._process.stdout.close()
        return code
