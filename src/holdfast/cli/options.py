"""Options that most commands take, and the configuration that they come to."""

from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace

from holdfast.node.config import DATA_DEFAULT, Config, Given, make_config
from holdfast.node.config_file import load_config_file

_CONFIG_DEFAULT = Path("holdfast.toml")

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder for the node's own things (default ./holdfast-data).")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Configuration file (default ./holdfast.toml, if it exists).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Accept what it costs, which is printed.")]


def yes(given: bool) -> str:
    """A switch as a query says it; left out where it was not given."""
    return "yes" if given else ""


def config_file(path: Path | None) -> Path | None:
    """The configuration file in use: the one that was named, else the one that is here, if any."""
    return _CONFIG_DEFAULT if path is None and (Path.cwd() / _CONFIG_DEFAULT).is_file() else path


def read_config(path: Path | None, given: Given) -> Config:
    """What the configuration file and then `given` say."""
    file, here = config_file(path), Path.cwd()
    if file is None:
        return make_config([given], here)
    said = load_config_file(file)
    beside = file.absolute().parent / DATA_DEFAULT
    if said.data is None and given.data is None and beside.is_dir() and not (here / DATA_DEFAULT).is_dir():
        # The node was started where the file is, and whoever asks is elsewhere.
        given = replace(given, data=beside)
    return make_config([said, given], here)
