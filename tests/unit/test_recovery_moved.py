"""Packs that compaction has written are no reason to bring a version back: the journal knew it before."""

from typing import cast

from holdfast.base.clock import SystemClock
from holdfast.base.ids import PackId
from holdfast.objects.rows import decode_record
from holdfast.packs.found import FoundPack
from holdfast.packs.manifest import MANIFEST_VERSION, Manifest
from holdfast.recovery.applying import Applied, Young, candidates
from holdfast.scheme import Scheme
from tests.kit.objects import Desk

NOBODY = cast("FoundPack", None)


async def test_what_was_moved_is_no_candidate_and_what_was_written_is() -> None:
    desk = await Desk(SystemClock()).bucket()
    await desk.put("key", b"bytes")
    (written,) = desk.packs.manifests
    await desk.objects.moving(desk.clock).move({written: 100}, Scheme(4, 2), {written})
    (moved,) = desk.packs.manifests.keys() - {written}

    def found(pack: PackId) -> list[str]:
        manifest = Manifest(MANIFEST_VERSION, desk.packs.manifests[pack])
        return [one.key for one in candidates({pack: Young(NOBODY, manifest, True)}, Applied())]

    assert found(written) == ["key"]
    assert found(moved) == []
    (entry,) = desk.packs.manifests[moved]
    assert decode_record(entry.record).size == 5
