"""Directories as places for members of the log and for copies of the rows."""

from pathlib import Path

from holdfast.index.sqlite.copy import CopyFiles, DirectoryCopyFiles
from holdfast.index.sqlite.folder import DirectoryFolder, Folder
from holdfast.index.sqlite.runner import Runner, ThreadRunner


class DirectoryMember:
    """A member of the log in a directory of its own, conventionally `index/` on a store. The directory is
    made when its parent is there. `name` is who it is in the membership for ever, whatever the path."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path

    @property
    def name(self) -> str:
        return self._name

    @property
    def place(self) -> str:
        return str(self._path)

    def open_folder(self) -> Folder:
        return DirectoryFolder(self._path)

    def new_runner(self) -> Runner:
        return ThreadRunner(f"index-log-{self._name}")


class DirectoryCopy:
    """A copy of the rows in a directory, which may be that of a member: their file names differ."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path

    @property
    def name(self) -> str:
        return self._name

    @property
    def place(self) -> str:
        return str(self._path)

    def files(self) -> CopyFiles:
        return DirectoryCopyFiles(self._path)

    def new_runner(self, purpose: str) -> Runner:
        return ThreadRunner(f"index-copy-{self._name}-{purpose}")
