"""What the configuration says of etcd, as the adapter takes it. Loads the driver of etcd."""

from holdfast.index.etcd import EtcdOptions, Tls
from holdfast.node.config_index import EtcdSettings, read_etcd_files, with_password


def etcd_access(address: str, settings: EtcdSettings) -> tuple[str, EtcdOptions]:
    """The address with its password, and the rest. Raises InvalidInput."""
    files = read_etcd_files(settings)
    tls = Tls(files.authority, files.certificate, files.key) if files.authority else None
    return with_password(address, files.password), EtcdOptions(tls=tls, quota_bytes=settings.quota_bytes)
