"""The README leads readers of the paper and of the tutorial to the right lines."""

import re

import pytest
from reading_map import README, line_of, links

EQUATIONS = ["2", "4", "5", "6-7", "8", "11", "12", "13", "14", "15"]


def test_links_lead_to_their_lines():
    wrong = [(name, line) for name, words, file, line in links() if line_of(name, words, file) != line]
    assert not wrong, "renew the numbers with: python tests/reading_map.py"


def test_a_name_that_is_gone_is_found_out():
    with pytest.raises(ValueError, match=r"has no DDPMUNetModel\.backward"):
        line_of("DDPMUNetModel.backward", None, "ddpm_hf/unet_ddpm.py")
    with pytest.raises(ValueError, match="has no line with 'magic'"):
        line_of("DDPMUNetModel.forward", "magic", "ddpm_hf/unet_ddpm.py")


def test_all_equations_are_there():
    rows = re.findall(r"^\| (?:eq\. )?([\w -]+) \|.*#L\d+", README.read_text(), re.MULTILINE)
    assert set(EQUATIONS) <= set(rows)
    assert {"Algorithm 1", "Algorithm 2"} <= set(rows)
