"""The commands: one sentence for what is expected to go wrong, and the exit code of its kind."""

import errno
from pathlib import Path

import pytest

from holdfast import __version__
from holdfast.base.errors import HoldfastError, InvalidInput, Unavailable
from holdfast.cli.exits import as_ours, sentence
from holdfast.cli.main import run
from holdfast.node.runtime import DataLock, Runtime


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What is on stderr: one line, and nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HOLDFAST_ACCESS_KEY_ID", "HOLDFAST_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"]) == 0
    assert capsys.readouterr().out == f"holdfast {__version__}\n"


@pytest.mark.parametrize("arguments", [["serv"], ["serve", "--prot", "9"], ["serve", "--port", "http"]])
def test_wrong_options_are_told_and_are_64(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 64
    assert "Traceback" not in capsys.readouterr().err


def test_status_without_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status"]) == 69
    assert "No node is running on" in said(capsys)


def test_cluster_status_without_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cluster", "status"]) == 69
    assert "No node is running on" in said(capsys)


def test_verify_without_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "--json"]) == 69
    assert "holdfast serve" in said(capsys)


def test_a_node_that_holds_its_data_but_does_not_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("HOLDFAST_SECRET_ACCESS_KEY", "something secret")
    lock = DataLock(tmp_path)
    # Nobody listens on port 1 of this machine.
    lock.publish(Runtime("http://127.0.0.1:1", "us-east-1", 1, 0.0))
    assert run(["status", "--data", str(tmp_path)]) == 69
    assert "does not answer" in said(capsys)
    lock.release()


def test_a_node_whose_credentials_are_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = DataLock(tmp_path)
    lock.publish(Runtime("http://127.0.0.1:1", "us-east-1", 1, 0.0))
    assert run(["status", "--data", str(tmp_path)]) == 64
    assert "HOLDFAST_ACCESS_KEY_ID" in said(capsys)
    lock.release()


def test_a_wrong_configuration_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "holdfast.toml").write_text("port = 9000\nshceme = 'rs-4-2'\n")
    assert run(["serve"]) == 64
    text = said(capsys)
    assert "holdfast.toml:2:" in text
    assert "did you mean 'scheme'" in text


def test_a_configuration_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--config", "nowhere.toml"]) == 64
    assert "no configuration file nowhere.toml" in said(capsys)


def test_a_configuration_that_is_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "holdfast.toml").write_bytes(b"port = 1\n# caf\xe9\n")
    assert run(["serve"]) == 64
    assert "holdfast.toml:2: not UTF-8" in said(capsys)


def test_a_scheme_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--scheme", "rs-16-6"]) == 64
    assert "needs 22 stores" in said(capsys)


def test_half_of_the_credentials(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_ACCESS_KEY_ID", "somebody")
    assert run(["serve"]) == 64
    assert "set both or neither" in said(capsys)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, InvalidInput),
        (errno.EROFS, InvalidInput),
        (errno.ENOTDIR, InvalidInput),
        (errno.ENOSPC, Unavailable),
        (errno.EADDRINUSE, InvalidInput),
    ],
)
def test_what_the_system_refuses_becomes_one_of_our_kinds(number: int, kind: type[HoldfastError]) -> None:
    ours = as_ours(OSError(number, "as the system says it", "/some/path"))
    assert isinstance(ours, kind)
    assert "/some/path" in sentence(ours)
    assert ours.hint


def test_what_nobody_expects_stays_what_it_is() -> None:
    assert as_ours(OSError(errno.EBADF, "a descriptor of ours")) is None


def test_a_sentence_is_one_line() -> None:
    assert sentence(InvalidInput("two\nlines", hint="and\n a hint")) == "two lines and a hint"
