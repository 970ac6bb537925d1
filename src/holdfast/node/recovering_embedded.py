"""A lost index made again where a node keeps it itself: on members on its own stores.

What must hold: an index that can be opened is never replaced unless that is asked for; what lay where the new
one goes is set aside, not removed; and no member votes before all have all rows.
"""

from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from holdfast.base.errors import HoldfastError, InvalidInput
from holdfast.base.randomness import Randomness
from holdfast.index.sqlite.folder import DirectoryFolder
from holdfast.index.sqlite.recovery import Choice, Verdict, choose
from holdfast.index.sqlite.refounding import Refounding
from holdfast.index.sqlite.remains import changes_after, look
from holdfast.index.sqlite.scan import Scan
from holdfast.node.config import Config
from holdfast.node.index import Members
from holdfast.node.recovering_stores import OwnFound
from holdfast.recovery.loading import Loaded, follow_log
from holdfast.recovery.scratch import Scratch

ASIDE = ".before-recovery"


class EmbeddedTarget:
    """Where the index of one node goes."""

    def __init__(
        self, config: Config, own: OwnFound, randomness: Randomness, tell: Callable[[str], None]
    ) -> None:
        self._config = config
        self._own = own
        self._randomness = randomness
        self._tell = tell
        self._remains: list[tuple[tuple[int, int], str, Path]] = []
        self._members: Members | None = None
        self._refounding: Refounding | None = None
        self.set_aside: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[str, ...]:
        """The members that the new index is begun with."""
        assert self._members is not None
        return self._members.first

    async def check(self, ours: set[str], *, force: bool) -> None:
        """Raises InvalidInput when the old index can be opened: one of the incarnations `ours`."""
        own = self._own
        choice = self._look_at(Members(self._config, own))
        if choice.verdict is Verdict.CHOSEN and (not ours or choice.incarnation.hex() in ours):
            have, of = len(choice.voters), len(choice.members)
            if not force:
                raise InvalidInput(
                    f"The index is there: {', '.join(choice.voters)} can be read, {have} of {of} members.",
                    hint="`holdfast serve` opens it. --force goes back to what snapshots and journal hold: "
                    "what was changed since, about the last second, is given up.",
                )
            self._remains = []
            self._tell(f"an index that is whole ({have} of {of} members) is replaced, as --force says")
        before = own.cluster
        # Members that are gone cannot be part of the new one; it is begun on what is there.
        own.cluster = replace(before, index=())
        self._members = Members(self._config, own)
        own.cluster = before

    def _look_at(self, members: Members) -> Choice:
        names = [name for name in (self._own.cluster.index or tuple(members.all)) if name in members.all]
        scans: dict[str, Scan] = {}
        failed: dict[str, str] = {}
        for name in names:
            place = Path(members.all[name].place)
            if not place.is_dir():
                failed[name] = "is not there"
                continue
            try:
                scan = look(DirectoryFolder(place))
            except HoldfastError as error:
                failed[name] = str(error)
                continue
            if scan.incarnation is not None:
                scans[name] = scan
                self._remains.append((scan.tip, name, place))
            else:
                failed[name] = "is empty"
        self._look_aside(members)
        return choose(names, scans, failed) if scans else Choice(Verdict.TOO_FEW)

    def _look_aside(self, members: Members) -> None:
        """A recovery that was interrupted has set aside what it read on from."""
        for name, member in members.all.items():
            place = Path(member.place)
            for aside in place.parent.glob(f"{place.name}{ASIDE}*"):
                try:
                    scan = look(DirectoryFolder(aside))
                except HoldfastError:
                    continue
                if scan.incarnation is not None:
                    self._remains.append((scan.tip, f"{name} ({aside.name})", aside))

    def follow_log(self, scratch: Scratch, loaded: Loaded) -> tuple[Loaded, str, int]:
        """Go on with what the index's members that are left know beyond the journal's end. One of them: what
        two have of which nothing was acknowledged need not agree."""
        for _, name, place in sorted(self._remains, reverse=True):
            changes = changes_after(DirectoryFolder(place), loaded.lineage.incarnation, loaded.revision)
            loaded, count, error = follow_log(scratch, loaded, changes)
            if error is not None:
                self._tell(f"the index's member {name} cannot be read on: {error}")
            if count:
                self._tell(f"{count:,} changes behind the journal's end are on the index's member {name}")
                return loaded, name, count
        return loaded, "", 0

    async def write(self, scratch: Scratch, incarnation: str, revision: int) -> int:
        """Give every member all rows; none of them votes yet. The revision that they are at."""
        members = self._members
        assert members is not None
        self.set_aside = tuple(self._put_aside(members))
        accesses = [members.all[name] for name in members.first]
        self._refounding = Refounding(
            accesses, lambda: scratch.scan(b""), incarnation, revision, self._randomness
        )
        self._tell(f"writing the new index to {', '.join(members.first)}")
        self._refounding.write()
        return revision

    async def join(self) -> None:
        """From now on it can be opened."""
        assert self._refounding is not None
        self._refounding.join()

    def _put_aside(self, members: Members) -> list[str]:
        """Move what lies where an index lay. It is kept: a person may still want it."""
        moved = []
        for member in members.all.values():
            place = Path(member.place)
            if not place.is_dir() or not any(place.iterdir()):
                continue
            to, number = place.with_name(f"{place.name}{ASIDE}"), 1
            while to.exists():
                number += 1
                to = place.with_name(f"{place.name}{ASIDE}-{number}")
            place.rename(to)
            moved.append(str(to))
        return moved
