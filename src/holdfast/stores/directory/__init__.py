"""A store in a directory of this machine."""

from holdfast.stores.directory.store import Attached, DirectoryOptions, DirectoryStore, attach, inspect

__all__ = ["Attached", "DirectoryOptions", "DirectoryStore", "attach", "inspect"]
