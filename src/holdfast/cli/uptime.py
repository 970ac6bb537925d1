"""`holdfast uptime`: reads the ledger's files and shows the figure, whether a node runs or not.

What must hold: it asks nobody, because the question comes up when nobody answers; a node that is down is
down until now; nothing is shown better than it was, and no data is shown as no data.
"""

import difflib
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import typer
from msgspec import Struct
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from holdfast.base.clock import Clock
from holdfast.base.errors import InvalidInput
from holdfast.cli.output import console, show
from holdfast.health.ledger import away_since
from holdfast.health.ledger_records import ALL, OTHER, Beat
from holdfast.health.ledger_uptime import AwayTime, Burn, Uptime, buckets_in, store_uptime, uptime
from holdfast.node.cluster import read_cluster
from holdfast.node.config import Config
from holdfast.node.ledger_files import LedgerFiles
from holdfast.node.runtime import read_runtime
from holdfast.s3.operations import OPERATIONS

SILENT_S = 15.0
"""A running node leaves a sign of life every 2 s; this long without one, it hangs or its disk does."""

WINDOW_MIN_S = 300
WINDOW_MAX_S = 5 * 366 * 86_400
_WINDOW = re.compile(r"([0-9]{1,6})\s*([mhdw])\Z")
_UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_NAMES = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))

_WHY = {
    "stopped": "stopped",
    "crashed": "killed or crashed",
    "rebooted": "the machine went down",
    "stalled": "stood still",
}


class Answer(Struct, frozen=True):
    """What `--json` prints: the figure, whether a node runs now, and its last sign of life (seconds since
    1970 UTC)."""

    running: bool
    last_sign_wall: float | None
    unreadable: tuple[str, ...]
    uptime: Uptime


def show_uptime(
    config: Config,
    clock: Clock,
    *,
    bucket: str | None,
    operation: str | None,
    store: str | None,
    window: str,
    objective_percent: float,
    as_json: bool,
) -> None:
    """Print the figure. Raises InvalidInput."""
    window_s = read_window(window)
    if not 0 < objective_percent < 100:
        raise InvalidInput(
            f"An objective of {objective_percent:g} % is none:", hint="say more than 0 and less than 100."
        )
    if store is not None and (bucket is not None or operation is not None):
        raise InvalidInput(
            "A store knows nothing of buckets and operations:", hint="say --store, or the others, not both."
        )
    files = LedgerFiles(config.data)
    if not files.folder.is_dir():
        raise InvalidInput(
            f"There is no ledger in {config.data}:",
            hint="a node makes one when it first serves. Name its folder with --data.",
        )
    _check_store(config, store)
    name = _operation(operation)
    answer = _answer(config, files, clock.wall(), window_s, objective_percent, bucket or ALL, name, store)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(answer)).decode())
    else:
        show(console(), uptime_view(answer))


def _answer(
    config: Config,
    files: LedgerFiles,
    wall: float,
    window_s: int,
    objective_percent: float,
    bucket: str,
    operation: str,
    store: str | None,
) -> Answer:
    running = read_runtime(config.data) is not None
    beat: Beat | None = files.last_beat()
    until_now = away_since(beat, beat.boot, wall) if beat is not None and not running else []
    now_ms = int(wall * 1000)
    # Burn rates look back three days, however short the window is.
    start_ms = now_ms - max(window_s, 3 * 86_400) * 1000
    loaded = files.load(start_ms, now_ms, until_now)
    _check_bucket(bucket, buckets_in(loaded.history))
    if store is None:
        figure = uptime(
            loaded.history, now_ms, window_s, objective_percent, bucket=bucket, operation=operation
        )
    else:
        figure = store_uptime(loaded.history, now_ms, window_s, objective_percent, store)
    last = beat.wall_ms / 1000 if beat is not None else None
    return Answer(running, last, loaded.unreadable, figure)


def read_window(text: str) -> int:
    """Seconds. Raises InvalidInput."""
    found = _WINDOW.match(text.strip())
    seconds = int(found[1]) * _UNITS_S[found[2]] if found else 0
    if not WINDOW_MIN_S <= seconds <= WINDOW_MAX_S:
        raise InvalidInput(f"{text!r} is not a window:", hint="from 5m to 5 years, as 90m, 12h, 30d or 4w.")
    return seconds


def _operation(name: str | None) -> str:
    if name is None:
        return ALL
    names = {operation.name.lower(): operation.name for operation in OPERATIONS}
    if (known := names.get(name.lower())) is not None:
        return known
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {names[near[0]]}?" if near else "as GetObject or PutObject."
    raise InvalidInput(f"{name!r} is not an operation of S3:", hint=hint)


def _check_bucket(bucket: str, known: set[str]) -> None:
    """Raises InvalidInput: where a bucket has no figure the node's own stands in, and would for any name.
    Where no bucket is on record, as when the node died in its first minute, that is all there is; nor can it
    be told where there were so many that some are kept together."""
    if bucket == ALL or bucket in known or OTHER in known or not known:
        return
    near = difflib.get_close_matches(bucket, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "nobody asked for it in that time; try a longer --window."
    raise InvalidInput(f"No request to a bucket {bucket!r} is on record:", hint=hint)


def _check_store(config: Config, slot: str | None) -> None:
    if slot is None:
        return
    cluster = read_cluster(config.data)
    slots = sorted(cluster.slots) if cluster is not None else []
    if slot not in slots:
        raise InvalidInput(f"There is no store {slot!r}:", hint=f"there are {', '.join(slots) or 'none'}.")


def uptime_view(answer: Answer) -> RenderableType:
    """The figure for a person."""
    figure = answer.uptime
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    table.add_column()
    table.add_row("availability:", _availability(figure))
    table.add_row("of:", _what(figure))
    table.add_row("window:", _window(figure))
    table.add_row("node:", _node(answer))
    table.add_row("downtime:", _downtime(figure))
    table.add_row("longest:", _longest(figure))
    for number, away in enumerate(reversed(figure.away)):
        table.add_row("not running:" if number == 0 else "", _away(away))
    if figure.away_count > len(figure.away):
        table.add_row("", f"and {figure.away_count - len(figure.away)} times before")
    table.add_row("calls:" if figure.store else "requests:", _requests(figure))
    if not figure.store:
        table.add_row("canary:", f"{figure.canary_successes} came back, {figure.canary_failures} failed")
        table.add_row("index:", f"away for {duration_up(figure.index_away_s)} while the node was running")
    table.add_row("store faults:", _faults(figure))
    table.add_row("error budget:", _budget(figure))
    for number, burn in enumerate(figure.burn):
        table.add_row("burn rate:" if number == 0 else "", _burn(burn))
    notes = _notes(answer)
    if not notes:
        return table
    return Group(table, Text("\n".join(f"Note: {note}" for note in notes)))


def _availability(figure: Uptime) -> Text:
    if figure.availability_percent is None:
        return Text("no data")
    percent = f"{figure.availability_percent:.4f} %"
    met = figure.availability_percent >= figure.objective_percent
    nines = f"{figure.nines:.2f} nines" if figure.nines is not None else "never interrupted"
    word = "met" if met else "missed"
    return Text(
        f"{percent}, {nines}; objective {figure.objective_percent:g} % {word}",
        style="green" if met else "red",
    )


def _what(figure: Uptime) -> str:
    if figure.store:
        return f"store {figure.store}"
    bucket = "all buckets" if figure.bucket == ALL else f"bucket {figure.bucket}"
    return f"{bucket}, {'all operations' if figure.operation == ALL else figure.operation}"


def _window(figure: Uptime) -> str:
    until = moment(figure.until_wall)
    return (
        f"{duration_up(figure.window_s)} until {until}; "
        f"{figure.known_percent:.2f} % of it has data ({duration_down(figure.known_s)})"
    )


def _node(answer: Answer) -> str:
    if answer.running:
        last = answer.last_sign_wall
        if last is None or answer.uptime.until_wall - last <= SILENT_S:
            return "running"
        return f"there, but without a sign of life since {moment(last)}"
    if answer.last_sign_wall is None:
        return "not running, and no sign of when it was"
    return f"not running since {moment(answer.last_sign_wall)}"


def _downtime(figure: Uptime) -> str:
    if not figure.known_s:
        return "no data"
    how = "out of use" if figure.store else "not running"
    away = f", of which {how} {duration_up(figure.away_s)}" if figure.away_s else ""
    return f"{duration_up(figure.downtime_s)}{away}"


def _longest(figure: Uptime) -> str:
    if figure.longest is None:
        return "none"
    return f"{duration_up(figure.longest.seconds)}, from {moment(figure.longest.wall)}"


def _away(away: AwayTime) -> str:
    known = f", give or take {away.uncertain_s:g} s" if away.uncertain_s else ""
    return f"{moment(away.wall)}, {duration_up(away.seconds)}{known}: {_WHY.get(away.why, away.why)}"


def _requests(figure: Uptime) -> str:
    if not figure.attempts and not figure.neither:
        return "none"
    gone = f", {figure.neither} given up by their clients" if figure.neither else ""
    return f"{figure.attempts}: {figure.successes} good, {figure.failures} failed{gone}; {figure.slow} slow"


def _faults(figure: Uptime) -> str:
    if not figure.store_faults:
        return "none began"
    detect = "not known" if figure.detect_mean_s is None else duration_up(figure.detect_mean_s)
    repair = "not over" if figure.repair_mean_s is None else duration_up(figure.repair_mean_s)
    return f"{figure.store_faults}; mean time to detect {detect}, to repair {repair}"


def _budget(figure: Uptime) -> str:
    budget = figure.budget
    allowed = f"{duration_down(budget.allowed_s)} allowed"
    if budget.left_percent is None:
        return f"{allowed}; no data"
    return f"{allowed}, {duration_up(budget.spent_s)} spent, {budget.left_percent:.2f} % left"


def _burn(burn: Burn) -> str:
    def rate(value: float | None) -> str:
        return "no data" if value is None else f"{value:.2f}x"

    line = (
        f"{rate(burn.long_rate)} over {duration_up(burn.long_s)}, {rate(burn.short_rate)} over "
        f"{duration_up(burn.short_s)}; alert above {burn.limit:g}x in both"
    )
    return f"{line}: ALERT" if burn.fires else line


def _notes(answer: Answer) -> Sequence[str]:
    figure = answer.uptime
    notes = list(answer.unreadable)
    if figure.damaged_records:
        places = "1 place" if figure.damaged_records == 1 else f"{figure.damaged_records} places"
        notes.append(f"Torn or damaged in {places} of the ledger, where there is no data.")
    if figure.lost_records:
        notes.append(f"{figure.lost_records} minutes could not be written, and count as no data.")
    return notes


def moment(wall: float) -> str:
    """A time for a person."""
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration_up(seconds: float) -> str:
    """A duration in its two largest units, rounded up."""
    return _duration(seconds, up=True)


def duration_down(seconds: float) -> str:
    """A duration in its two largest units, rounded down."""
    return _duration(seconds, up=False)


def _duration(seconds: float, *, up: bool) -> str:
    if seconds < 60:
        tenths = (math.ceil if up else math.floor)(round(seconds * 10, 6))
        return f"{tenths / 10:g} s"
    whole = (math.ceil if up else math.floor)(round(seconds, 6))
    at = next(number for number, (_, size) in enumerate(_NAMES) if whole >= size)
    name, size = _NAMES[at]
    next_name, next_size = _NAMES[at + 1]
    rest = (-(-(whole % size) // next_size)) if up else whole % size // next_size
    count = whole // size
    if rest * next_size >= size:
        count, rest = count + 1, 0
    return f"{count} {name} {rest} {next_name}" if rest else f"{count} {name}"
