"""The tables in docs/ lead readers of the paper and of the tutorial to the right lines."""

import re

import pytest
from reading_map import LINK, PAPER_MAP, TUTORIAL_MAP, line_of, links

PAPER = ["eq. 2", "eq. 3", "eq. 4", "eq. 5", "eq. 6-7", "eq. 8", "eq. 9-11", "eq. 12", "eq. 13", "eq. 14", "eq. 15"]
PAPER += ["Algorithm 1", "Algorithm 2", "section 3.2", "section 4.3", "section 4.4", "appendix B"]
TUTORIAL = """gather DenoiseDiffusion.q_xt_x0 q_sample DenoiseDiffusion.p_sample DenoiseDiffusion.loss
    UNet Swish TimeEmbedding ResidualBlock AttentionBlock DownBlock UpBlock MiddleBlock Downsample Upsample
    Configs Configs.init Configs.sample Configs.train run CelebADataset MNISTDataset
    Sampler.sample Sampler.p_sample p_x0 Sampler.sample_animation Sampler.interpolate interpolate_animate
    Sampler.show_image make_video"""


def test_links_lead_to_their_lines():
    wrong = [(name, line) for name, words, file, line in links() if line_of(name, words, file) != line]
    assert not wrong, "update the numbers with: python tests/reading_map.py"


def test_a_name_that_is_gone_is_found_out():
    with pytest.raises(ValueError, match=r"has no DDPMUNetModel\.backward"):
        line_of("DDPMUNetModel.backward", None, "ddpm_hf/unet_ddpm.py")
    with pytest.raises(ValueError, match="has no line with 'magic'"):
        line_of("DDPMUNetModel.forward", "magic", "ddpm_hf/unet_ddpm.py")


def rows(page):
    """Return the first cells of a page's table; the links in each row are well formed."""
    found = [line for line in page.read_text().splitlines() if line.startswith("| ")][2:]
    assert all(len(LINK.findall(row)) == row.count("](") > 0 for row in found)
    return [row.removeprefix("| ").split(" | ")[0] for row in found]


def test_all_equations_and_names_are_there():
    assert rows(PAPER_MAP) == PAPER
    assert re.findall(r"`([\w.]+)`", " ".join(rows(TUTORIAL_MAP))) == TUTORIAL.split()
