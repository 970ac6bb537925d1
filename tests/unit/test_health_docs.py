"""The documentation of states is what the table says. HOLDFAST_WRITE_DOCS=1 writes it anew."""

import os
from pathlib import Path

from holdfast.health.transitions import TRANSITIONS, StoreState, as_markdown, as_mermaid

PAGE = Path(__file__).resolve().parents[2] / "docs" / "health.md"
BEGIN, END = "<!-- made from holdfast.health.transitions -->\n", "<!-- end -->"


def test_the_page_holds_the_table_and_the_diagram_of_the_code() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = f"{before}{BEGIN}{as_markdown()}{END}{after}"
    if os.environ.get("HOLDFAST_WRITE_DOCS"):
        PAGE.write_text(wanted)
    assert PAGE.read_text() == wanted, "run this test with HOLDFAST_WRITE_DOCS=1"


def test_the_diagram_has_an_arrow_for_each_pair_of_states_in_the_table() -> None:
    arrows = [line for line in as_mermaid() if " --> " in line and "[*]" not in line]
    pairs = {(before.name.lower(), line.after.name.lower()) for line in TRANSITIONS for before in line.before}
    assert {tuple(arrow.split(":")[0].strip().split(" --> ")) for arrow in arrows} == pairs
    assert len(arrows) == len(pairs)
    assert {name for pair in pairs for name in pair} == {state.name.lower() for state in StoreState}
