"""How a member of etcd is started: its command line, and the files it needs nothing of. Pure.

One place for what is tuned, so that every etcd that Holdfast runs, or tests, runs alike. On one machine and
within a zone a heartbeat is heard in well under a millisecond, so that silence means something much sooner
than etcd's own settings assume; the leader is replaced within about a second.
"""

from pathlib import Path

from msgspec import Struct

HEARTBEAT_MS = 50
ELECTION_MS = 500
"""etcd waits between this and twice as long for a leader. At least five heartbeats."""

QUOTA_BYTES = 8 << 30
"""The largest that etcd's authors advise."""

assert ELECTION_MS >= 5 * HEARTBEAT_MS


class EtcdMember(Struct, frozen=True):
    """One member: where its files are, and the ports it listens on at `host`."""

    name: str
    data: Path
    client_port: int
    peer_port: int
    host: str = "127.0.0.1"

    @property
    def client_url(self) -> str:
        """Where nodes reach it."""
        return f"http://{self.host}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        """Where its peers reach it."""
        return f"http://{self.host}:{self.peer_port}"


def address_of(members: tuple[EtcdMember, ...]) -> str:
    """The address of an index on these members."""
    return "etcd://" + ",".join(f"{member.host}:{member.client_port}" for member in members)


def command_line(
    member: EtcdMember,
    members: tuple[EtcdMember, ...],
    *,
    program: str = "etcd",
    cluster: str = "holdfast",
    heartbeat_ms: int = HEARTBEAT_MS,
    election_ms: int = ELECTION_MS,
    quota_bytes: int = QUOTA_BYTES,
) -> list[str]:
    """Starts `member` of a cluster of `members`, new or as it was left.

    Checks at its start that its data agree with the others', and each hour after; votes only when it could
    win; forgets nothing by itself, because Holdfast says what may be forgotten.
    """
    return [
        program,
        f"--name={member.name}",
        f"--data-dir={member.data}",
        f"--listen-client-urls={member.client_url}",
        f"--advertise-client-urls={member.client_url}",
        f"--listen-peer-urls={member.peer_url}",
        f"--initial-advertise-peer-urls={member.peer_url}",
        "--initial-cluster=" + ",".join(f"{one.name}={one.peer_url}" for one in members),
        "--initial-cluster-state=new",
        f"--initial-cluster-token={cluster}",
        f"--heartbeat-interval={heartbeat_ms}",
        f"--election-timeout={election_ms}",
        f"--quota-backend-bytes={quota_bytes}",
        "--pre-vote=true",
        "--auto-compaction-retention=0",
        "--experimental-initial-corrupt-check=true",
        "--experimental-corrupt-check-time=1h",
        "--logger=zap",
        "--log-level=warn",
    ]
