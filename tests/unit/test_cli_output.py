"""What people see says what is so: losses, wrong bytes, shared disks, and nothing that is not known."""

from io import StringIO

from rich.console import Console, RenderableType
from rich.text import Text

from holdfast.base.ids import StoreId
from holdfast.base.wording import counted, of_all
from holdfast.cli.output import banner, finding_view, status_view, summary_sentence, watching
from holdfast.index.port import IndexState, IndexStatus, MemberStatus
from holdfast.node.credentials import Credentials
from holdfast.node.status import (
    Event,
    NodeState,
    PacksStatus,
    Promise,
    Status,
    StoreStatus,
    judge,
    promise_of,
    promise_sentences,
)
from holdfast.node.verification import PackFinding, PackState, Summary
from holdfast.scheme import Scheme
from holdfast.topology import Location, Topology

RS42 = Scheme(4, 2)


def shown(view: RenderableType) -> str:
    out = StringIO()
    Console(file=out, width=200, highlight=False).print(view)
    return out.getvalue()


def disks(count: int, device: str = "", hosts: int = 1) -> Topology:
    return Topology(
        Location(StoreId(f"s{number}"), host=f"h{number % hosts}", device=device) for number in range(count)
    )


def promised(topology: Topology, scheme: Scheme, members: int) -> Promise:
    stores = [topology.location(store) for store in topology.stores[:members]]
    return promise_of(topology, scheme, Topology(place for place in stores if place))


def index(*states: str) -> IndexStatus:
    members = tuple(MemberStatus(f"disk{n}", state) for n, state in enumerate(states, 1))
    return IndexStatus(IndexState.SERVING, "sqlite", "first", 7, members, 2)


def store(slot: str, state: str = "healthy", reason: str = "", wrong: int = 0) -> StoreStatus:
    return StoreStatus(
        slot=slot,
        store=StoreId(slot),
        path=f"/mnt/{slot}",
        state=state,
        reason=reason,
        bytes_total=10 << 30,
        bytes_free=1536 << 20,
        wrong_blocks=wrong,
    )


FIVE = index(*["current"] * 5)


def test_six_directories_on_one_disk_are_one_disk() -> None:
    promise = promised(disks(6, device="sda"), RS42, 5)
    assert promise.both == {"store": 2, "device": 0, "host": 0, "zone": 0, "region": 0}
    text = "\n".join(promise_sentences(promise))
    assert "any 2 of 6 stores" in text
    assert "none of 1 device" in text
    assert "they are one disk" in text


def test_six_disks_of_their_own_survive_two() -> None:
    promise = promised(disks(6), RS42, 5)
    assert promise.both["device"] == 2
    assert "one disk" not in "\n".join(promise_sentences(promise))


def test_the_weaker_of_data_and_index_is_what_counts() -> None:
    promise = promised(disks(6), RS42, 3)
    assert promise.both["store"] == 1
    assert "any 1 of 6 stores (data 2, index 1)" in promise_sentences(promise)


def test_hosts_are_promised_only_where_there_are_several() -> None:
    text = "\n".join(promise_sentences(promised(disks(6, hosts=3), RS42, 5)))
    assert "any 1 of 3 hosts" in text
    assert "zone" not in text


def test_all_is_well_is_said_only_when_it_is() -> None:
    state, sentences, actions = judge([store("disk1")], FIVE, PacksStatus(packs=3))
    assert (state, sentences, actions) == (NodeState.ONLINE, ("All is well.",), ())


def test_full_stores_are_named_with_what_to_do() -> None:
    stores = [store("disk1"), store("disk2", "full", "nothing is left above the reserve")]
    state, sentences, actions = judge(stores, index("current", "current"), PacksStatus())
    assert state is NodeState.DEGRADED
    assert any(sentence.startswith("Full: disk2.") for sentence in sentences)
    assert any("Delete objects" in action for action in actions)


def test_what_is_lost_is_named_with_what_to_do() -> None:
    stores = [store("disk1"), store("disk2", "missing", "no directory"), store("disk3", wrong=4)]
    packs = PacksStatus(packs=10, degraded=7, shards_missing=7, debts=3)
    state, sentences, actions = judge(stores, index("current", "absent", "current"), packs)
    text = "\n".join(sentences)
    assert state is NodeState.DEGRADED
    assert "1 of 3 stores away: disk2 (no directory)" in text
    assert "7 of 10 packs have less redundancy than they should (7 shards missing)" in text
    assert "3 of 10 packs were written with fewer stores than promised" in text
    assert "4 wrong blocks were found on disk3" in text
    assert "without 1 of 3 members: disk2" in text
    assert any("empty directory" in action for action in actions)


def test_what_cannot_be_read_is_not_called_degraded() -> None:
    state, sentences, _ = judge([store("disk1")], FIVE, PacksStatus(packs=10, unreadable=1))
    assert state is NodeState.UNAVAILABLE
    assert any("cannot be read" in line for line in sentences)


def test_the_status_shows_all_of_it() -> None:
    stores = (store("disk1"), store("disk2", "missing", "There is no directory at this path."))
    packs = PacksStatus(packs=10, bytes_stored=3 << 30, degraded=10, shards_missing=10, losses_survivable=1)
    state, sentences, actions = judge(stores, FIVE, packs)
    status = Status(
        version="1.2.3",
        endpoint="http://127.0.0.1:9000",
        pid=42,
        uptime_s=3700,
        state=state,
        sentences=sentences,
        actions=actions,
        scheme="rs-4-2",
        stores=stores,
        index=FIVE,
        packs=packs,
        survives={"store": 1, "device": 1},
        domains={"store": 6, "device": 6},
        events=(Event(1_790_000_000.0, "store disk2 is missing"),),
    )
    text = shown(status_view(status))
    for expected in (
        "http://127.0.0.1:9000",
        "up 1 h 1 min",
        "state: degraded",
        "/mnt/disk2 (There is no directory at this path.)",
        "1.5 GiB",
        "10 packs, 3.0 GiB; 10 degraded",
        "1 of 6 stores",
        "2026-09-21 14:13:20  store disk2 is missing",
    ):
        assert expected in text


def test_the_banner_can_be_pasted_and_hides_a_secret_that_was_given() -> None:
    def printed(kept: str, *, private: bool = True) -> str:
        return shown(
            banner(
                version="1.2.3",
                endpoint="http://127.0.0.1:9000",
                region="us-east-1",
                credentials=Credentials("HFKEY", "the-secret"),
                kept=kept,
                scheme="rs-4-2",
                promise=promised(disks(6, device="sda"), RS42, 5),
                remarks=["disk3 is away."],
                private=private,
            )
        )

    own = printed("holdfast-data/credentials.json")
    assert "export AWS_SECRET_ACCESS_KEY=the-secret" in own
    assert "aws s3 mb s3://" in own
    assert "they are one disk" in own
    assert "Note: disk3 is away." in own
    assert "the-secret" not in printed("the environment")
    journal = printed("holdfast-data/credentials.json", private=False)
    assert "the-secret" not in journal
    assert "holdfast credentials" in journal


def test_verification_is_told_pack_by_pack_and_in_sum() -> None:
    lost = PackFinding("00ff", PackState.LOST, "rs-4-2", ("shard 1 at disk2: missing", "shard 2: wrong"))
    text = shown(finding_view(lost))
    assert "pack 00ff (rs-4-2): lost" in text
    assert "shard 1 at disk2: missing" in text
    summary = Summary(packs=3, whole=1, degraded=1, lost=1, shards=18, bytes_read=4 << 20, seconds=2.0)
    assert summary_sentence(summary) == (
        "3 packs: 1 whole, 1 degraded, 1 lost. 18 shards, 4.0 MiB read in 2 s (2.0 MiB/s)."
    )


def test_what_is_watched_goes_into_a_pipe_at_once_and_one_below_the_other() -> None:
    out = StringIO()
    with watching(Console(file=out, width=80)) as update:
        for number in (1, 2):
            update(Text(f"view {number}"))
            assert out.getvalue().splitlines()[-1] == f"view {number}"
    assert out.getvalue() == "view 1\nview 2\n"


def test_one_is_not_many() -> None:
    assert [counted(number, "pack") for number in (0, 1, 2)] == ["0 packs", "1 pack", "2 packs"]
    assert of_all(1, 1, "pack", "has", "have") == "1 of 1 pack has"
    assert of_all(1, 2, "pack", "has", "have") == "1 of 2 packs has"
    assert of_all(2, 2, "pack", "has", "have") == "2 of 2 packs have"
