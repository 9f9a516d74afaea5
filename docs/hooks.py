"""What MkDocs does to a page of this folder beyond Markdown.

The pages are read on GitHub, too. There, a link to a line of code opens that line. The site has no such page, so the link
leads to the object's entry in the reference, if it has one; otherwise its text stays, without a link.
"""

import re

CODE_LINK = re.compile(r'\[`([\w.]+)`(?: "[^"]+")?\]\(\.\./([\w/]+)\.py#L\d+\)')
DOCSTRING_REFERENCE = re.compile(r"\[(<code>[\w.]+</code>)\]")  # [`DDPMUNetModel`], as diffusers' docstrings write it


def on_page_markdown(markdown: str, **_) -> str:
    """Turn links to lines of code into references, which mkdocs-autorefs resolves."""

    def reference(link: re.Match) -> str:
        name, file = link.groups()
        module = file.removeprefix("pipelines/").replace("/", ".")
        return f'<autoref identifier="{module}.{name}" optional>`{name}`</autoref>'

    return CODE_LINK.sub(reference, markdown)


def on_page_content(html: str, **_) -> str:
    """Take the brackets from the names of classes in docstrings."""
    return DOCSTRING_REFERENCE.sub(r"\1", html)
