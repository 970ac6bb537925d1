"""What nodes tell balancers is believed with the secret, for the question that was asked, byte by byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.balance.following import view_told
from holdfast.balance.settings import _SECRET
from holdfast.base.errors import Damaged, InvalidInput
from holdfast.cluster.telling import (
    FORMAT,
    Told,
    ToldNode,
    answer,
    balancer_secret,
    believed,
    is_proven,
    question,
)

SECRET = "what-the-nodes-know-it-by"
NONCE = "0123456789abcdef" * 2
TOLD = Told(
    FORMAT,
    "cluster",
    "n1",
    (
        ToldNode("n1", "http://10.0.0.1:9000", "eu", "a"),
        ToldNode("n2", "http://[fe80::1]:9000", draining=True),
        ToldNode("n3", ""),
        ToldNode("n4", "http://no_name:9000"),
    ),
)


def test_who_knows_the_secret_is_told_and_believed() -> None:
    assert is_proven(SECRET, NONCE, question(SECRET, NONCE))
    assert believed(SECRET, NONCE, answer(SECRET, NONCE, TOLD)) == TOLD


def test_who_does_not_is_neither() -> None:
    other = SECRET + "x"
    assert not is_proven(SECRET, NONCE, question(other, NONCE))
    for proof in ("", "0" * 64, "ä" * 64, SECRET):
        assert not is_proven(SECRET, NONCE, proof)
    with pytest.raises(InvalidInput, match="secret"):
        believed(SECRET, NONCE, answer(other, NONCE, TOLD))


def test_a_recorded_answer_fits_no_other_question() -> None:
    with pytest.raises(InvalidInput):
        believed(SECRET, NONCE[::-1], answer(SECRET, NONCE, TOLD))
    assert not is_proven(SECRET, NONCE[::-1], question(SECRET, NONCE))
    # Nor is a question's proof that of an answer.
    assert question(SECRET, NONCE).encode() not in answer(SECRET, NONCE, TOLD)


def test_a_nonce_that_nobody_makes_is_refused() -> None:
    for nonce in ("", "0" * 31, "0" * 65, "Z" * 32, "é" * 32):
        assert not is_proven(SECRET, nonce, question(SECRET, nonce))


@given(st.data())
def test_a_byte_that_is_changed_is_noticed(data: st.DataObject) -> None:
    raw = bytearray(answer(SECRET, NONCE, TOLD))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    try:
        # White space and names of fields round the proof may differ; never what is told.
        assert believed(SECRET, NONCE, bytes(raw)) == TOLD
    except (InvalidInput, Damaged):
        return


def test_a_newer_format_is_refused() -> None:
    newer = Told(FORMAT + 1, "cluster", "n1", ())
    with pytest.raises(Damaged, match="format 2"):
        believed(SECRET, NONCE, answer(SECRET, NONCE, newer))


def test_the_secret_of_balancers_is_made_of_the_clusters_and_does_not_tell_it() -> None:
    made = balancer_secret(b"x" * 32)
    assert made == balancer_secret(b"x" * 32) != balancer_secret(b"y" * 32)
    assert _SECRET.match(made)


def test_nodes_become_endpoints_and_when_all_drain_none_does() -> None:
    view = view_told(TOLD.nodes)
    assert [(one.host, one.port, one.name, one.draining) for one in view] == [
        ("10.0.0.1", 9000, "n1", False),
        ("fe80::1", 9000, "n2", True),
    ]
    everybody = view_told(
        (ToldNode("n1", "http://a:1", draining=True), ToldNode("n2", "http://b:1", draining=True))
    )
    assert [one.draining for one in everybody] == [False, False]
