"""The embedded index: a replicated log on directories is the truth, SQLite a disposable copy of it."""

from holdfast.index.sqlite.copy_place import CopyAccess, CopyOptions
from holdfast.index.sqlite.index import IndexOptions, SqliteIndex, open_index
from holdfast.index.sqlite.places import DirectoryCopy, DirectoryMember
from holdfast.index.sqlite.seat import LogOptions, MemberAccess

__all__ = [
    "CopyAccess",
    "CopyOptions",
    "DirectoryCopy",
    "DirectoryMember",
    "IndexOptions",
    "LogOptions",
    "MemberAccess",
    "SqliteIndex",
    "open_index",
]
