"""The commands `holdfast keys list|export|import|rotate`: the ring of keys that buckets are sealed with.

They work on the file in the data folder, whether a node runs on it or not; a running one sees the change
within seconds. What must hold: no key is ever printed, and none is taken out.
"""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from holdfast.base.errors import InvalidInput
from holdfast.base.randomness import SystemRandomness
from holdfast.cli.options import ConfigOption, DataOption, JsonOption, read_config
from holdfast.node.config import Config, Given
from holdfast.node.key_rings import FILE_NAME
from holdfast.stores.sealing import KeyRing, change_ring, read_ring, save_ring

app = typer.Typer(help="The keys that buckets are sealed with: see, copy, renew.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="The file of a key ring.")]


@app.command("list")
def list_keys(data: DataOption = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show which keys there are, by their ids; the last one seals."""
    ids = [key.id.hex() for key in _ring(read_config(config, Given(data=data))).keys]
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(ids)).decode())
        return
    for number, id in enumerate(ids, start=1):
        typer.echo(f"{id}  {'seals' if number == len(ids) else 'opens'}")


@app.command("export")
def export_ring(file: FileArgument, data: DataOption = None, config: ConfigOption = None) -> None:
    """Copy the ring to a file that is not there yet. Keep it where the sealed stores are not."""
    ring = _ring(read_config(config, Given(data=data)))
    save_ring(Path.cwd() / file, ring, SystemRandomness())
    typer.echo(f"{len(ring.keys)} keys are in {file} now. Whoever has it can read what is sealed.")


@app.command("import")
def import_ring(file: FileArgument, data: DataOption = None, config: ConfigOption = None) -> None:
    """Put the keys of a copy into the ring of this node, as older ones; nothing is taken out."""
    path = _path(read_config(config, Given(data=data)))
    other = read_ring(Path.cwd() / file)
    if path.exists():
        ring = change_ring(path, lambda ring: ring.joined(other), SystemRandomness())
    else:
        path.parent.mkdir(exist_ok=True)
        save_ring(path, other, SystemRandomness())
        ring = other
    typer.echo(f"The ring has {len(ring.keys)} keys; {ring.newest.id.hex()} seals.")


@app.command()
def rotate(data: DataOption = None, config: ConfigOption = None) -> None:
    """Add a new key, which seals from now on. What is sealed with older ones stays as it is."""
    whole = read_config(config, Given(data=data))
    if whole.cluster is not None:
        raise InvalidInput(
            "In a cluster keys are made of its secret, so that all nodes have the same:",
            hint="give the cluster a new secret; old keys stay in the ring.",
        )
    path = _path(whole)
    _ring(whole)
    randomness = SystemRandomness()
    ring = change_ring(path, lambda ring: ring.rotated(randomness), randomness)
    typer.echo(
        f"{ring.newest.id.hex()} seals from now on. Copies of the ring are old: `holdfast keys export FILE`."
    )


def _path(config: Config) -> Path:
    return config.data / FILE_NAME


def _ring(config: Config) -> KeyRing:
    path = _path(config)
    if not path.exists():
        raise InvalidInput(
            f"There is no key ring {path}:", hint="one is made when the first sealed bucket becomes a store."
        )
    return read_ring(path)
