"""One node: builds every part from the configuration, serves, drains, lets go.

The order is that of trust. First the lock on the data folder, then who the stores are, then the index,
which says what exists; only then packs and objects, which use both, and last the face, which lets
clients in. Stopping goes the other way. What must hold: whatever was opened is closed when a later step
fails; and nobody is served before everything is there.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec
from msgspec.structs import replace

from holdfast import __version__
from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, HoldfastError, InvalidInput
from holdfast.base.ids import PackId, StoreId
from holdfast.base.randomness import Randomness
from holdfast.chores.fencing import graves_wait
from holdfast.cluster.claiming import prove
from holdfast.cluster.fences import NO_FENCES, OwnFences
from holdfast.cluster.members import Changed
from holdfast.cluster.others import ClusterOthers
from holdfast.health import StoreHealth
from holdfast.health.events import Kind
from holdfast.index.measured import MeasuredIndex
from holdfast.index.port import IndexState
from holdfast.node.background import Background, Cluster
from holdfast.node.bucket_routes import bucket_routes
from holdfast.node.chores_status import CHORES_PATH, answer_chores
from holdfast.node.config import Config, scheme_for
from holdfast.node.credentials import Credentials
from holdfast.node.descriptors import connections_allowed, files_allowed
from holdfast.node.events import Events
from holdfast.node.filling import lasting
from holdfast.node.ground import Directories
from holdfast.node.index_home import check_known, cluster_of, embedded_home, shared_home
from holdfast.node.index_watch import LOOK_EVERY_S as INDEX_LOOK_EVERY_S
from holdfast.node.index_watch import IndexWatch
from holdfast.node.joining import Joining
from holdfast.node.keeper import Decorate, Keeper
from holdfast.node.ledger_archive import ArchiveLedger
from holdfast.node.lineage import check_lineage, recovered_lately
from holdfast.node.managing import StoreManaging
from holdfast.node.metrics_report import Metrics
from holdfast.node.metrics_token import obtain_token
from holdfast.node.peer_metrics import cluster_families
from holdfast.node.report import make_status, node_statuses, other_statuses, store_statuses
from holdfast.node.runtime import DataLock, Runtime
from holdfast.node.secrets import Secrets, open_secrets, watch_file
from holdfast.node.status import NodeStatus, Promise, Status, StoreStatus
from holdfast.node.telling import telling_routes
from holdfast.node.verifying import Verifications
from holdfast.node.watching import Watching
from holdfast.objects.service import Objects
from holdfast.objects.settings import ObjectsLimits, ObjectsSettings
from holdfast.packs import codec
from holdfast.packs.promising import Promises, choose_scheme
from holdfast.packs.storage import Packs
from holdfast.packs.verifying import PackReport, Verifier
from holdfast.packs.watched import WatchedIndex
from holdfast.s3.face import AdminAnswer, AdminRequest, Route, route_at_once
from holdfast.s3.server import S3Server
from holdfast.scheme import Scheme
from holdfast.stores.port import Store
from holdfast.wire.exchange import Limits as ServerLimits

NOTE_EVERY_S = 60.0
KEYS_EVERY_S = 2.0
DRAIN_S = 10.0
VERIFYING_THREADS = 2
"""For scrub and its like: the work of a thread is mostly done without the interpreter lock."""
"""How long requests under way may take to finish once the node stops."""

LINGER_S = 2.0
"""How long a node of a cluster goes on with taking requests once it says that it is not ready: balancers ask
each second."""

LATE_S = 0.5
"""A turn of the loop that takes longer has too much in it: balancers ask another node beside after less."""

EVENTS_SHOWN = 20


class Node:
    """Made by `open_node`; closed by its exit stack."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        lock: DataLock,
        secrets: Secrets,
        wrap: Decorate,
    ) -> None:
        self._config = config
        self._clock = clock
        self._lock = lock
        self._wrap = wrap
        self._started = clock.monotonic()
        self._events = Events(clock, config.events, config.name)
        self._secrets = secrets
        self.endpoint = ""
        self.joining: Joining | None = None
        self._fences: OwnFences | None = None
        self.ended = asyncio.Event()
        """Set when this process must not go on; `ended_by` says why."""
        self.ended_by: HoldfastError | None = None
        self._ahead: list[str] = []
        self._told_ahead: list[str] = []
        """Slots whose stores have seen more of the index than there is."""

    async def build(self, stack: AsyncExitStack, randomness: Randomness) -> None:
        """Open every part; what was opened is closed by `stack`, last first."""
        config, clock = self._config, self._clock
        self._ground = Directories(config, clock, randomness, lambda: self._secrets.known)
        self._keeper = keeper = Keeper(
            config,
            clock=clock,
            randomness=randomness,
            on_event=self._events.tell,
            ground=self._ground,
        )
        self._boot = randomness.token(8).hex()
        home, name = None, ""
        if config.cluster is not None:
            home = await shared_home(config, clock, randomness)
            stack.push_async_callback(home.index.close)
            name = await cluster_of(home, config, self._secrets.known, clock, randomness)
            self.joining = Joining(
                config,
                self._boot,
                name,
                self._secrets.roots(name),
                home.index,
                keeper,
                clock,
                randomness,
                self._events.tell,
                on_fenced=self._must_end,
            )
            await self.joining.check()
        stack.callback(self._ground.rings.close)
        stack.push_async_callback(keeper.close)
        await keeper.open(name)
        self._promises = Promises()
        self._health = health = StoreHealth([], config.scheme.m, clock.monotonic())
        self._watching = watching = Watching(config, keeper, health, clock, self._events.tell)

        def decorate(slot: str, store: Store) -> Store:
            return watching.measure(self._wrap(slot, store))

        keeper.start(health, decorate)
        self._home = home = home or await embedded_home(config, keeper, clock, randomness)
        self._index = index = WatchedIndex(MeasuredIndex(home.index, watching.index, clock))
        stack.push_async_callback(index.close)
        await self._check_index()
        await self._events.serve(
            index, clock, randomness, holder=self._boot if self.joining is not None else ""
        )
        stack.push_async_callback(self._events.stop)
        if self.joining is not None:
            stack.push_async_callback(self.joining.close)
        self._verifying = ThreadPoolExecutor(VERIFYING_THREADS, "holdfast-verifying")
        stack.callback(self._verifying.shutdown, wait=False)
        self._build_packs(index, randomness)
        stack.push_async_callback(self._packs.close)
        stack.callback(self._objects.close)
        token = None if config.metrics_open else obtain_token(config.data, randomness)
        stack.push_async_callback(self._background.finish)
        self._managing = StoreManaging(
            keeper,
            home.places,
            index,
            health,
            self._background,
            config,
            clock,
            self._events.tell,
            self.joining,
        )
        self._server = S3Server(
            self._objects,
            self._secrets.access,
            clock,
            randomness,
            host=config.host,
            port=config.port,
            region=config.region,
            base_domains=(config.domain,) if config.domain else (),
            limits=ServerLimits(
                connections_max=connections_allowed(files_allowed()),
                requests_max=config.limits.requests_max,
                late_s=LATE_S,
            ),
            routes=self._routes(),
            observer=self._background.observing(watching.requests),
            balancer_secrets=self._secrets.balancers,
        )
        self._metrics = Metrics(
            watching,
            keeper,
            health,
            index.status,
            self._background,
            lambda: self._server.in_flight,
            clock,
            token,
            lambda: cluster_families(self._secrets, self.joining),
        )
        # A node that others know, and that cannot serve, would be missed.
        await self._server.bind()
        stack.push_async_callback(self._server.stop, 0.0)
        if self.joining is not None:
            await self.joining.join(health, decorate)
        if self._fences is not None:
            await self._fences.open()
        await self._server.start()
        stack.push_async_callback(watching.close)
        stack.push_async_callback(self._server.stop, DRAIN_S)
        stack.callback(watching.draining)
        stack.push_async_callback(self._verifications.close)
        archive = ArchiveLedger(
            watching.keeping.files, self._background.named, clock, randomness, self._events.tell
        )
        stack.callback(archive.close)
        self._background.start(self._objects, self._managing.housekeeping, archive)
        stack.push_async_callback(self._background.close)
        self._watch(stack, keeper.watch())
        self._watch(stack, self._keep_noting())
        self._watch(stack, self._follow_keys())
        self._watch(stack, self._watch_index())
        if config.cluster is not None:
            self._watch(stack, self._watch_secrets(config.cluster.secret_file))
        self.endpoint = _endpoint(config.host, self._server.port)
        await watching.serve(
            index, self._packs, randomness, scheme=self.scheme, may_delete=not self._all_ahead
        )
        self._events.tell(
            f"the node serves at {self.endpoint}: Holdfast {__version__}, process {os.getpid()}",
            kind=Kind.NODE,
        )
        if self.joining is not None:
            self.joining.serves(self.endpoint)
        self._lock.publish(Runtime(self.endpoint, config.region, os.getpid(), clock.wall()))

    def _must_end(self, error: Fenced) -> None:
        """Another process is this node now, or it is no member any more."""
        self._events.tell(f"the node stops: {error}", kind=Kind.NODE)
        self.ended_by = error
        self.ended.set()

    async def stop_serving(self) -> None:
        """Have balancers and clients go elsewhere before requests are refused; at once where there is no
        elsewhere."""
        if self.joining is not None and not self.ended.is_set():
            self.joining.stop_soon()
            await self._clock.sleep(LINGER_S)

    async def _check_index(self) -> None:
        """Whether this index is the one that the stores and the data folder know, and not behind them."""
        keeper, status = self._keeper, self._index.status()
        await check_known(self._home, keeper)
        made = await check_lineage(keeper, self._index)
        if told := recovered_lately(made, self._clock.wall()):
            self._events.tell(told, kind=Kind.INDEX)
        keeper.remember_index(self._home.names, status.incarnation)
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Whether a store has seen more of the index than there is. Never forgotten in this process: the
        index goes on from where it went back to, and will have more than they have seen."""
        status = self._index.status()
        found = self._keeper.ahead_of(status.incarnation, status.revision)
        if new := [slot for slot in found if slot not in self._ahead]:
            self._ahead += new
            self._events.tell(
                f"the index is behind what {', '.join(new)} have seen: nothing is deleted on its word",
                kind=Kind.INDEX,
            )

    def _attached(self, store: StoreId) -> None:
        """A store came, or came back, while the node runs."""
        self._background.attached(store)
        self._look_ahead()
        if self._all_ahead:
            self._stop_deleting()

    def _member_changed(self, change: Changed) -> None:
        """What stores of another node have seen of the index counts here, too."""
        if change.after is None or not change.after.row.ahead or self._all_ahead:
            return
        if change.name == self._config.name:
            return  # by its row of before: its stores say what is so now
        self._told_ahead.append(f"stores of {change.name}")
        self._events.tell(
            f"the index is behind what stores of {change.name} have seen: nothing is deleted on its word",
            kind=Kind.INDEX,
        )
        self._stop_deleting()

    @property
    def _all_ahead(self) -> list[str]:
        """Who has seen more of the index than there is. Others are told of own stores only: what was heard
        would go round among nodes, and come back to each that starts anew."""
        return self._ahead + self._told_ahead

    def _stop_deleting(self) -> None:
        self._background.stop_deleting()
        self._watching.send_no_canary()

    def _build_packs(self, index: WatchedIndex, randomness: Randomness) -> None:
        keeper, health, clock = self._keeper, self._health, self._clock
        codec.prepare(self._config.scheme)
        cluster = self._cluster_of(index, randomness)
        self._packs = packs = Packs(
            keeper.attached,
            keeper.topology,
            index,
            health,
            clock,
            randomness,
            on_damage=self._damaged,
            room=keeper.room,
            fences=cluster.fences if cluster is not None else NO_FENCES,
            shared=cluster is not None,
            promises=self._promises,
        )
        if self.joining is not None:
            self.joining.is_ahead = lambda: bool(self._ahead)
            self.joining.on_change.append(self._member_changed)
            self.joining.reading = lambda: packs.reader.oldest_read(index.status().revision)
        self._objects = Objects(index, packs, clock, randomness, self._objects_settings())
        self._background = background = Background(
            keeper,
            health,
            index,
            packs,
            clock,
            randomness,
            self._events.tell,
            scheme=self._config.scheme,
            fit=self._fitted,
            settings=self._config.chores,
            may_delete=not self._all_ahead,
            holder=self._boot,
            cluster=cluster,
            under_way=lambda: self._server.in_flight,
            verifying=self._verifying,
        )
        keeper.on_attached = self._attached
        verifier = Verifier(keeper.attached, index, packs.rows, packs.reader, clock, self._verifying)

        def verify_all() -> AsyncIterator[PackReport]:
            # What recovery needs is read as well, and mended by who keeps it.
            background.keeping.upkeep.look_now()
            background.runner.wake(background.keeping.upkeep.name)
            return verifier.verify_all()

        self._verifications = Verifications(
            verify_all,
            lambda: background.census.status().packs,
            keeper.slot_of,
            clock,
            randomness,
        )

    def _cluster_of(self, index: WatchedIndex, randomness: Randomness) -> Cluster | None:
        """What others who use the same index have to do with this node's packs."""
        if self.joining is None:
            return None
        name = self._config.name
        self._fences = OwnFences(index, self._clock, randomness, name, self._boot, lambda: graves_wait(index))
        return Cluster(name, self._fences, ClusterOthers(index, self._clock), self.joining.reaches_others)

    def _objects_settings(self) -> ObjectsSettings:
        config = self._config
        return ObjectsSettings(
            default_scheme=config.scheme.name,
            stores=self._keeper.count,
            check_scheme=self._check_scheme,
            fit_default=self._fit_default,
            choose_scheme=lambda survive: choose_scheme(lasting(self._keeper), survive),
            learn=self._promises.learn,
            region=config.region,
            limits=ObjectsLimits(inflight_bytes=config.limits.memory_bytes),
        )

    def _check_scheme(self, scheme: Scheme) -> None:
        stores = self._keeper.count()
        if scheme.n > stores:
            raise InvalidInput(
                f"Scheme {scheme.name} needs {scheme.n} stores, there are {stores}.",
                hint="Choose a smaller one, or give the node more stores.",
            )

    def _fit_default(self, scheme: Scheme) -> Scheme:
        """What a bucket gets that asked for nothing: where nobody chose, what fits all stores there are."""
        return scheme if self._config.scheme_given else scheme_for(None, self._keeper.count())

    def _watch(self, stack: AsyncExitStack, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)

        async def stop() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        stack.push_async_callback(stop)
        task.add_done_callback(_must_not_fail)

    async def _watch_index(self) -> None:
        watch = IndexWatch()
        while True:
            await self._clock.sleep(INDEX_LOOK_EVERY_S)
            for change in watch.look(self._index.status()):
                self._events.tell(
                    change.reason,
                    kind=Kind.INDEX,
                    subject=change.subject,
                    before=change.before,
                    after=change.after,
                )

    async def _watch_secrets(self, file: Path) -> None:
        def tell(what: str) -> None:
            self._events.tell(what, kind=Kind.NODE)

        await watch_file(file, self._secrets, partial(prove, self._index), self._clock, tell)

    async def _follow_keys(self) -> None:
        while True:
            with contextlib.suppress(HoldfastError, OSError):  # the disk fails: tried again
                await self._ground.rings.follow(self._clock.monotonic())
            await self._clock.sleep(KEYS_EVERY_S)

    async def _keep_noting(self) -> None:
        while True:
            # At once, too: until a store has noted the index, it cannot tell that it was lost.
            await self.note()
            await self._clock.sleep(NOTE_EVERY_S)

    async def note(self) -> None:
        """Have the stores remember how far the index is, so that old copies are recognised."""
        status = self._index.status()
        if status.state is IndexState.SERVING:
            await self._keeper.note(status.incarnation, status.revision)

    # What the parts tell

    def _damaged(self, pack: PackId, shard: int, what: str) -> None:
        # Packs are built before the chores that mend them, and read nothing until both are there.
        self._background.damaged(pack, shard, what)

    # What is asked

    @property
    def credentials(self) -> Credentials:
        """What clients sign with."""
        return self._secrets.credentials

    @property
    def promise(self) -> Promise:
        """What this layout survives when all is well."""
        return self._home.promise(self._keeper.topology(), self.scheme)

    @property
    def scheme(self) -> Scheme:
        """What buckets get now that ask for nothing."""
        return self._fitted(self._config.scheme)

    def _fitted(self, scheme: Scheme) -> Scheme:
        """As `_fit_default`, for what has to be written with however few stores."""
        return scheme if self._keeper.count() < 2 else self._fit_default(scheme)

    def remarks(self) -> list[str]:
        """What a person should know at the start, beyond the promise."""
        away = [held for held in self._keeper.held.values() if held.opened is None]
        remarks = list(self._keeper.remarks)
        remarks += [f"store {held.place.slot} is {held.attachment.value}: {held.reason}" for held in away]
        if self._all_ahead:
            remarks.append(f"the index is older than what {', '.join(self._all_ahead)} have seen.")
        if self.joining is not None:
            remarks += self.joining.remarks()
        return remarks + self._home.remarks()

    async def status(self) -> Status:
        """How everything is now."""
        background = self._background
        await background.census.whole()
        return make_status(
            endpoint=self.endpoint,
            uptime_s=self._clock.monotonic() - self._started,
            scheme=self.scheme.name,
            stores=await self._store_statuses(),
            index=self._index.status(),
            packs=background.packs_status(),
            promise=self.promise,
            packs_survive={level.value: count for level, count in background.census.survives.items()},
            events=self._events.shown(EVENTS_SHOWN),
            webhook=self._events.webhook_status(),
            recovery=background.recovery_status(),
            ahead=self._all_ahead,
            node=self._config.name if self.joining is not None else "",
            nodes=self._node_statuses(),
        )

    async def _store_statuses(self) -> tuple[StoreStatus, ...]:
        keeper, health = self._keeper, self._health
        own = await store_statuses(list(keeper.held.values()), keeper.cluster, health)
        if self.joining is None:
            return own
        own = tuple(replace(one, slot=f"{self._config.name}/{one.slot}") for one in own)
        return tuple(sorted([*own, *other_statuses(keeper.others.values(), health)], key=_by_slot))

    def _node_statuses(self) -> tuple[NodeStatus, ...]:
        joining = self.joining
        if joining is None:
            return ()
        now = self._clock.monotonic()
        return node_statuses(joining.members.values(), joining.name, joining.is_ready, now)

    def _routes(self) -> Mapping[str, Route]:
        telling = telling_routes(self.joining, self._secrets.balancers) if self.joining is not None else {}
        return {
            **telling,
            "/-/live": route_at_once(self._answer_live),
            "/-/ready": route_at_once(self._answer_ready),
            "/-/status": Route(self._answer_status, signed=True),
            "/-/events": Route(self._events.answer, signed=True),
            CHORES_PATH: Route(
                lambda request: answer_chores(self._background, request),
                signed=True,
                methods=frozenset({"GET", "POST"}),
            ),
            "/-/metrics": Route(lambda request: self._metrics.answer(request), signed=False),
            "/-/verify": Route(self._verifications.answer, signed=True, methods=frozenset({"GET", "POST"})),
            **self._managing.routes(),
            **bucket_routes(self._objects, self._background.census),
        }

    def _answer_live(self, request: AdminRequest) -> AdminAnswer:
        return AdminAnswer(200, b'{"live":true}')

    def _answer_ready(self, request: AdminRequest) -> AdminAnswer:
        ready = self._index.status().state is IndexState.SERVING
        if self.joining is not None:
            ready = ready and self.joining.is_ready
        return AdminAnswer(200 if ready else 503, msgspec.json.encode({"ready": ready}))

    async def _answer_status(self, request: AdminRequest) -> AdminAnswer:
        return AdminAnswer(200, msgspec.json.encode(await self.status()))


async def open_node(
    config: Config,
    environment: Mapping[str, str],
    clock: Clock,
    randomness: Randomness,
    stack: AsyncExitStack,
    *,
    wrap: Decorate = lambda _, store: store,
) -> Node:
    """A node that serves; closed by `stack`. `wrap` comes between the node and each store, for whoever
    breaks or slows them on purpose. Raises what stands in its way, with nothing left open."""
    config.data.mkdir(exist_ok=True)
    async with AsyncExitStack() as own:
        lock = DataLock(config.data)
        own.callback(lock.release)
        secrets = open_secrets(config, environment, randomness)
        node = Node(config, clock, lock, secrets, wrap)
        await node.build(own, randomness)
        stack.push_async_exit(own.pop_all())
    return node


def _by_slot(store: StoreStatus) -> tuple[str, int, str]:
    """Disks in the order of their numbers."""
    return store.slot.partition("/")[0], len(store.slot), store.slot


def _endpoint(host: str, port: int) -> str:
    """Where to reach it; an address that means all of them is shown as this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104
    return (
        f"http://[{shown}]:{port}" if ":" in shown and not shown.startswith("[") else f"http://{shown}:{port}"
    )


def _must_not_fail(task: asyncio.Task[None]) -> None:
    """What watches over the stores ends only with the node: anything else is our own mistake, and the
    loop's handler says so."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": "a watch ended", "exception": error, "task": task})
