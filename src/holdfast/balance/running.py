"""Runs a balancer: writes what Envoy reads, starts it again when it ends, follows what changes.

What must hold: a file that is wrong while the balancer runs changes nothing, and is told once; Envoy is never
left without a configuration, nor left running when we end; stopping says "not ready" first, then takes no
more connections, then waits for what is under way.
"""

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from holdfast.balance.admin import Admin
from holdfast.balance.bootstrap import bootstrap, resources
from holdfast.balance.files import Folder
from holdfast.balance.following import LOOK_EVERY_S as ASK_EVERY_S
from holdfast.balance.following import Following
from holdfast.balance.listener import LISTENER, certificate, listener
from holdfast.balance.nodes_cluster import cluster, endpoints
from holdfast.balance.process import EnvoyProcess, find_envoy
from holdfast.balance.resolving import Resolver
from holdfast.balance.settings import Settings, Tls, load_settings
from holdfast.balance.status import endpoint_of, is_serving
from holdfast.balance.view import View
from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError, InvalidInput, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.base.supervisor import Supervisor

LOOK_EVERY_S = 0.5
START_S = 30.0
BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 5.0
TOGETHER_S = 0.5
"""Two signals within this time are one: terminals and supervisors tell a group and then each of it."""
QUIET_S = 1.0
"""A connection that was just made may bring a request yet: for so long none must be under way."""
CALM_S = 10.0
"""An Envoy that ran for so long is started again at once when it ends."""

Tell = Callable[[str], None]


class Balancer:
    """One balancer. Raises what stands in its way before anything is started."""

    def __init__(self, path: Path, clock: Clock, randomness: Randomness, tell: Tell) -> None:
        self._path = path
        self._clock = clock
        self._tell = tell
        self._raw = path.read_bytes() if path.is_file() else b""
        self._settings = settings = load_settings(path)
        self._program = find_envoy()
        self._certificate = _read_certificate(settings.tls) if settings.tls else None
        _check_port(settings)
        _check_log(settings)
        self._folder = Folder(settings.directory)
        self._admin = Admin(self._folder.files.admin)
        self._resolver = Resolver(clock)
        self._told: dict[str, str] = {}
        self._following = Following(self._folder.files.view, randomness, self._tell_once)
        self._envoy: EnvoyProcess | None = None

    async def run(self, stopping: asyncio.Event, on_ready: Callable[[str], None]) -> None:
        """Until `stopping`; `on_ready` is told the endpoint once clients are served. Raises Unavailable when
        Envoy cannot be brought to serve at all."""
        await self._ask()
        await self._write()
        watching: asyncio.Task[None] | None = None
        try:
            await self._start(stopping)
            if stopping.is_set():
                return
            scheme = "https" if self._settings.tls else "http"
            on_ready(f"{scheme}://{endpoint_of(self._admin)}")
            watching = asyncio.create_task(self._keep_running())
            following = asyncio.create_task(self._follow())
            waiting = asyncio.create_task(stopping.wait())
            await asyncio.wait({watching, following, waiting}, return_when=asyncio.FIRST_COMPLETED)
            for task in (watching, following):
                if task.done():
                    task.result()
                task.cancel()
            waiting.cancel()
            await asyncio.gather(watching, following, waiting, return_exceptions=True)
            await self._drain()
        finally:
            if self._envoy is not None:
                await self._envoy.kill()
            self._folder.files.admin.unlink(missing_ok=True)
            self._folder.close()

    def look_again(self) -> None:
        """Read the file anew, and open the logs anew: for whoever rotates them."""
        with contextlib.suppress(Unavailable):
            self._admin.ask("/reopen_logs", "POST")
        self._raw = b""

    # Starting, and starting again

    async def _start(self, stopping: asyncio.Event) -> None:
        envoy = self._envoy = await EnvoyProcess.start(self._program, self._settings, self._folder.files)
        deadline = self._clock.monotonic() + START_S
        while not is_serving(self._admin):
            if stopping.is_set():
                return
            late = self._clock.monotonic() > deadline
            if late or envoy.code is not None or self._refused():
                raise Unavailable(
                    f"Envoy does not serve: {envoy.last_words() or 'it said nothing'}.",
                    hint=f"See {self._folder.files.log}.",
                )
            await self._clock.sleep(0.05)

    def _refused(self) -> bool:
        """Whether Envoy does not take what it is told: it would go on without it."""
        names = ("listener_manager.lds.update_rejected", "cluster_manager.cds.update_rejected")
        try:
            return any(self._admin.number(name) for name in names)
        except Unavailable:
            return False

    async def _keep_running(self) -> None:
        wait_s = BACKOFF_FIRST_S
        while True:
            envoy = self._envoy
            assert envoy is not None
            began = self._clock.monotonic()
            code = await envoy.wait()
            if self._clock.monotonic() - began > CALM_S:
                wait_s = BACKOFF_FIRST_S
            self._tell(
                f"Envoy ended ({code}) and is started again: {envoy.last_words() or 'it said nothing'}"
            )
            await self._clock.sleep(wait_s)
            wait_s = min(wait_s * 2, BACKOFF_LAST_S)
            self._envoy = await EnvoyProcess.start(self._program, self._settings, self._folder.files)

    # Following

    async def _follow(self) -> None:
        while True:
            await self._clock.sleep(ASK_EVERY_S if self._settings.seeds else LOOK_EVERY_S)
            self._look_at_file()
            self._look_at_certificate()
            await self._ask()
            await self._write()

    async def _ask(self) -> None:
        if self._settings.seeds:
            await self._following.look(self._settings.seeds, self._settings.secret)

    def _look_at_file(self) -> None:
        try:
            raw = self._path.read_bytes()
        except OSError as error:
            self._tell_once("file", f"{self._path} cannot be read, all stays as it is: {error.strerror}")
            return
        if raw == self._raw:
            return
        self._raw = raw
        try:
            settings = load_settings(self._path)
            _check_log(settings)
            if settings.directory != self._settings.directory:
                raise InvalidInput("dir cannot change while the balancer runs:", hint="start it again.")
        except HoldfastError as error:
            self._tell(f"All stays as it is: {error}")
            return
        changed = settings != self._settings
        restart = {"threads", "connections_max", "region", "zone"}
        stale = [name for name in restart if getattr(settings, name) != getattr(self._settings, name)]
        self._settings = settings
        if changed:
            self._tell(f"{self._path} was read anew.")
        if stale:
            self._tell(f"What changed of {', '.join(sorted(stale))} counts in full after a restart.")

    def _look_at_certificate(self) -> None:
        if self._settings.tls is None:
            return
        try:
            self._certificate = _read_certificate(self._settings.tls)
        except InvalidInput as error:
            self._tell_once("certificate", f"The certificate stays as it is: {error}")
        else:
            self._told.pop("certificate", None)

    def _tell_once(self, subject: str, sentence: str) -> None:
        """Say it, unless it was the last that was said of the subject. "" is for what is well again."""
        if self._told.get(subject, "") != sentence:
            self._told[subject] = sentence
            if sentence:
                self._tell(sentence)

    async def _write(self) -> None:
        settings, folder = self._settings, self._folder
        files = folder.files
        known = self._following.view if settings.seeds else settings.nodes
        view: View = await self._resolver.resolve(known)
        if unknown := self._resolver.unknown:
            self._tell_once("names", f"No address is known of {', '.join(unknown)}.")
        folder.write(files.bootstrap, bootstrap(settings, files))
        folder.write(files.endpoints, resources(endpoints(settings, view)))
        folder.write(files.clusters, resources(cluster(str(files.endpoints))))
        if self._certificate is not None:
            folder.write(files.certificate, resources(certificate(*self._certificate)))
        folder.write(files.listeners, resources(listener(settings, str(files.certificate))))

    # Stopping

    async def _drain(self) -> None:
        """Nothing here may fail: an Envoy that does not answer has nothing under way."""
        settings, clock = self._settings, self._clock
        with contextlib.suppress(Unavailable):
            self._admin.ask("/healthcheck/fail", "POST")
            await clock.sleep(settings.notice_s)
            self._admin.ask("/drain_listeners", "POST")
            began = quiet_since = clock.monotonic()
            while True:
                now = clock.monotonic()
                if self._admin.number(f"http.{LISTENER}.downstream_rq_active"):
                    quiet_since = now
                elif now - quiet_since > QUIET_S or not self._admin.number(
                    f"http.{LISTENER}.downstream_cx_active"
                ):
                    break
                if now - began > settings.drain_s:
                    self._tell("Requests that took too long were broken off.")
                    break
                await clock.sleep(0.05)


def _read_certificate(tls: Tls) -> tuple[str, str]:
    """Certificate and key, which fit. Raises InvalidInput."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key, password=lambda: "")
        return tls.certificate.read_text(), tls.key.read_text()
    except FileNotFoundError:
        missing = tls.certificate if not tls.certificate.is_file() else tls.key
        raise InvalidInput(f"There is no {missing}:", hint="check [tls] in the configuration.") from None
    except ssl.SSLError as error:
        raise InvalidInput(
            f"{tls.certificate} and {tls.key} cannot be used: {error.reason or error}.",
            hint="Both must be PEM, without a password, and belong together.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The certificate cannot be read: {error}.") from None


def _check_log(settings: Settings) -> None:
    log = settings.access_log
    if log is not None and log.parent != settings.directory and not log.parent.is_dir():
        raise InvalidInput(
            f"access_log: there is no folder {log.parent}:", hint="make it, or choose another."
        )


def _check_port(settings: Settings) -> None:
    """Envoy shares ports with others of its kind without a word; two balancers at one would be a mistake."""
    if settings.listen_port == 0:
        return
    host, port = settings.listen_host, settings.listen_port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0][0]
    except OSError:
        raise InvalidInput(f"listen: {host} is not an address:", hint='as "0.0.0.0:9000".') from None
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise InvalidInput(
                f"No permission to listen on port {port} of {host}.",
                hint="Ports below 1024 need a privilege.",
            ) from None
        except OSError as error:
            raise InvalidInput(
                f"Cannot listen on {host}, port {port}: {error.strerror}.",
                hint="Stop what listens there, or choose another for listen.",
            ) from None


async def run_balancer(
    path: Path,
    clock: Clock,
    randomness: Randomness,
    supervisor: Supervisor,
    tell: Tell,
    on_ready: Callable[[str], None],
) -> None:
    """Run one until SIGINT or SIGTERM, which drain; the second of them ends it at once. SIGHUP reads the file
    and opens the logs anew."""
    loop = asyncio.get_running_loop()
    balancer = Balancer(path, clock, randomness, tell)
    stopping = asyncio.Event()
    asked_at = 0.0
    running = asyncio.current_task()
    assert running is not None

    def stop() -> None:
        nonlocal asked_at
        if not stopping.is_set():
            asked_at = clock.monotonic()
        elif clock.monotonic() - asked_at > TOGETHER_S:
            running.cancel()
        if not stopping.is_set():
            supervisor.stopping()
        stopping.set()

    def ready(endpoint: str) -> None:
        supervisor.ready()
        on_ready(endpoint)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, balancer.look_again)
    alive = asyncio.create_task(supervisor.stay_alive(clock))
    try:
        await balancer.run(stopping, ready)
    finally:
        alive.cancel()
