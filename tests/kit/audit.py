"""Counting every shard on every disk, without asking the node: what the index says (read from a copy of its
rows with SQLite alone), what lies there, and what the byte tables say should.
"""

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.kit.by_the_book import shard_file


class Audit(NamedTuple):
    """What was found. `faults` names each shard that is not what it should be, to the last byte."""

    packs: int
    shards: int
    faults: list[str]


class _Pack(NamedTuple):
    id: bytes
    k: int
    m: int
    payload: int
    manifest: int
    places: list[tuple[int, str, int]]


def audit(data: Path) -> Audit:
    """Of all packs of a node that has stopped, in the stores `disk*` of its data folder."""
    folders = {
        json.loads((path / "holdfast-store.json").read_text())["store"]: path
        for path in data.glob("disk*")
        if (path / "holdfast-store.json").is_file()
    }
    packs = list(_packs(data))
    shards, faults = 0, []
    for pack in packs:
        shards += len(pack.places)
        faults += _faults_of(pack, folders)
    return Audit(len(packs), shards, faults)


def _packs(data: Path) -> Iterable[_Pack]:
    copies = [path for path in data.glob("*/index/copy.sqlite") if path.stat().st_size]
    newest = max(copies, key=_stands_at)
    with closing(sqlite3.connect(newest)) as connection:
        found = connection.execute(
            "SELECT key, value FROM rows WHERE key >= ? AND key < ?", (b"pack/", b"pack0")
        ).fetchall()
    for key, value in found:
        (k, m), payload, manifest, _, places, *_ = msgspec.msgpack.decode(value)
        yield _Pack(
            bytes.fromhex(bytes(key)[5:].decode()), k, m, payload, manifest, [tuple(p) for p in places]
        )


def _stands_at(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        ((raw,),) = connection.execute("SELECT data FROM meta").fetchall()
    sequence = msgspec.msgpack.decode(raw[4:])[1]
    assert isinstance(sequence, int)
    return sequence


def _faults_of(pack: _Pack, folders: dict[str, Path]) -> list[str]:
    faults, files = [], {}
    name = pack.id.hex()
    for shard, store, attempt in pack.places:
        if store not in folders:
            faults.append(f"{name}: shard {shard} is on {store}, which is not there")
            continue
        path = folders[store] / "shards" / name[:2] / f"{name}.{shard}.{attempt}"
        if path.is_file():
            files[shard] = path.read_bytes()
        else:
            faults.append(f"{name}: shard {shard} is not in {folders[store].name}")
    if len({store for _, store, _ in pack.places}) < len(pack.places):
        faults.append(f"{name}: two shards lie in one store")
    stored = _stored_bytes(pack, files)
    if stored is None:
        return [*faults, f"{name}: its data shards are not all there"]
    for shard, store, attempt in pack.places:
        should = shard_file(stored, pack.payload, pack.id, pack.k, pack.m, shard, attempt)
        if shard in files and files[shard] != should:
            faults.append(f"{name}: shard {shard} in {folders[store].name} is not what it should be")
    real = {*range(_real(pack)), *range(pack.k, pack.k + pack.m)}
    if lacking := real - {shard for shard, _, _ in pack.places}:
        faults.append(f"{name}: shards {sorted(lacking)} have no place")
    return faults


def _unit_bytes(pack: _Pack) -> tuple[int, int, int]:
    """Full units, how many full stripes, and the unit of the last one."""
    unit = (1 << 20) // pack.k // 4096 * 4096
    full, rest = divmod(pack.payload + pack.manifest, unit * pack.k)
    return unit, full, -(-rest // (pack.k * 4096)) * 4096


def _real(pack: _Pack) -> int:
    _, full, last = _unit_bytes(pack)
    return pack.k if full else -(-(pack.payload + pack.manifest) // last)


def _stored_bytes(pack: _Pack, files: dict[int, bytes]) -> bytes | None:
    unit, full, last = _unit_bytes(pack)
    size = full * unit + last
    data = {shard: file[len(file) - size :] for shard, file in files.items() if shard < pack.k}
    if any(shard not in data for shard in range(_real(pack))):
        return None
    units = [data.get(shard, bytes(size)) for shard in range(pack.k)]
    stored = bytearray()
    for start in range(0, size, unit):
        for one in units:
            stored += one[start : start + unit]
    return bytes(stored[: pack.payload + pack.manifest])
