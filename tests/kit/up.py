"""`holdfast up` as a real process: a whole cluster, gone with the test; and load that counts what fails."""

import os
import random
import signal
import subprocess
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError

from holdfast.node.credentials import from_secret
from holdfast.up.supervising import PartState, read_state
from tests.kit.process import PROGRAM, REGION, clean_environment, die_with_parent, wait_until


class UpProcess:
    """`holdfast up` in `home`. A context manager."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.home = home
        self.directory = home / "c"
        self._command = [PROGRAM, "up", "--dir", "c", "--port", "0", *arguments]
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._said: list[str] = []

    def __enter__(self) -> "UpProcess":
        self._process = subprocess.Popen(
            self._command,
            cwd=self.home,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=die_with_parent,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.append(line)
            if line.startswith("Ctrl-C stops"):
                break
        else:
            code = self._process.wait(timeout=60)
            raise AssertionError(f"the cluster ended with {code} instead of serving:\n{self.told()}")
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()
        return self

    def _drain(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._said.extend(self._process.stdout)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._end()
        if error is not None:
            print(self.told())  # noqa: T201

    def told(self) -> str:
        """What it and its parts said, of each the last lines."""
        logs = sorted((self.directory / "logs").glob("*.log"))
        tails = [
            f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            for log in logs
        ]
        return "\n".join(["".join(self._said[-40:]), *tails])

    def stop(self) -> int:
        """As Ctrl-C would; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self._end()

    def _end(self) -> int:
        process = self._process
        assert process is not None
        code = process.wait(timeout=120)
        if self._reader is not None:
            self._reader.join(timeout=10)
        if process.stdout is not None:
            process.stdout.close()
        self._process = self._reader = None
        return code

    def parts(self, prefix: str = "") -> dict[str, PartState]:
        """What runs, by name."""
        return {part.name: part for part in read_state(self.directory) if part.name.startswith(prefix)}

    def restart(self, name: str, number: int = signal.SIGTERM) -> None:
        """Have a part end by a signal, and wait until it is up again, in a process of its own."""
        before = self.parts()[name]
        os.kill(before.pid, number)
        wait_until(f"{name} to be started again", lambda: self.parts()[name].starts > before.starts)
        path = "/-/balancer" if name.startswith("b") else "/-/ready"
        wait_until(f"{name} to be up", lambda: is_up(self.parts()[name].endpoint + path))

    def clients(self) -> list[Any]:
        """A boto3 client for each balancer, that tries everything once."""
        found = from_secret((self.directory / "secret").read_bytes().strip())
        return [
            boto3.client(
                "s3",
                endpoint_url=balancer.endpoint,
                aws_access_key_id=found.access_key_id,
                aws_secret_access_key=found.secret_access_key,
                region_name=REGION,
                config=Config(retries={"total_max_attempts": 1}, connect_timeout=30, read_timeout=60),
            )
            for balancer in self.parts("b").values()
        ]


def is_up(url: str) -> bool:
    """Whether it answers, and well."""
    with suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
        return bool(answer.status == 200)
    return False


class Load:
    """Workers that put, read and delete objects of up to 200 KB, each under conditions that only a request
    made exactly once meets, and check every byte. Each goes to its balancer; to the other only when nobody
    listens at its own. A context manager: `failed` is what went wrong."""

    def __init__(self, cluster: UpProcess, workers: int = 3) -> None:
        self._cluster = cluster
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(workers)]
        self.done = 0
        self.failed: list[str] = []
        cluster.clients()[0].create_bucket(Bucket="load")

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=120)

    def go_on(self, more: int = 100) -> None:
        """Until so many more requests were answered."""
        until = self.done + more
        wait_until("requests to be answered", lambda: self.done >= until or bool(self.failed))

    def _work(self, worker: int) -> None:
        chance = random.Random(worker)
        clients = self._cluster.clients()
        clients = clients[worker % 2 :] + clients[: worker % 2]
        number = 0
        while not self._stopping.is_set():
            number += 1
            key = f"w{worker}/{number}"
            body = chance.randbytes(chance.choice((0, 10, 4096, 50_000, 200_000)))
            try:
                etag = self._ask(clients, "put_object", Key=key, Body=body, IfNoneMatch="*")["ETag"]
                read = self._ask(clients, "get_object", Key=key)["Body"].read()
                assert read == body, "another content"
                self._ask(clients, "delete_object", Key=key, IfMatch=etag)
            except Exception as error:
                self.failed.append(f"{key}: {error!r}")

    def _ask(self, clients: list[Any], what: str, **arguments: Any) -> Any:
        try:
            answer = getattr(clients[0], what)(Bucket="load", **arguments)
        except EndpointConnectionError:
            answer = getattr(clients[1], what)(Bucket="load", **arguments)
        self.done += 1
        return answer
