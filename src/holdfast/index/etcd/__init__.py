"""The index in etcd: for several nodes that keep their index themselves."""

from holdfast.index.etcd.connections import Tls
from holdfast.index.etcd.index import EtcdIndex, EtcdOptions, open_etcd

__all__ = ["EtcdIndex", "EtcdOptions", "Tls", "open_etcd"]
