"""Options that most commands take, and the configuration that they come to."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.node.config import Config, Given, make_config
from holdfast.node.config_file import load_config_file

_CONFIG_DEFAULT = Path("holdfast.toml")

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder for the node's own things (default ./holdfast-data).")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Configuration file (default ./holdfast.toml, if it exists).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def config_file(path: Path | None) -> Path | None:
    """The configuration file in use: the one that was named, else the one that is here, if any."""
    return _CONFIG_DEFAULT if path is None and (Path.cwd() / _CONFIG_DEFAULT).is_file() else path


def read_config(path: Path | None, given: Given) -> Config:
    """What the configuration file and then `given` say."""
    file = config_file(path)
    return make_config([given] if file is None else [load_config_file(file), given], Path.cwd())
