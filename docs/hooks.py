"""What MkDocs does to a page of this folder beyond Markdown.

The pages are read on GitHub, too. There, a link to a line of code opens that line. On the site, the link leads to the
object's entry in the reference. If it has none, the text stays, without a link.
"""

import re

CODE_LINK = re.compile(r'\[`([\w.]+)`(?: "[^"]+")?\]\(\.\./([\w/]+)\.py#L\d+\)')
# The docstrings are written as in diffusers: types stand in backticks, and names of classes in [`brackets`].
DOCSTRING_TYPE = re.compile(r"<code>[^<]*`[^<]*</code>")
NAME_IN_TYPE = re.compile(r"\[`~?([^`]*)`\]|`([^`]*)`|\*(optional)\*")
NAME_IN_TEXT = re.compile(r"\[<code>~?([\w.]+)</code>\]")


def on_page_markdown(markdown: str, **_) -> str:
    """Turn links to lines of code into references, which mkdocs-autorefs resolves."""

    def reference(link: re.Match) -> str:
        name, file = link.groups()
        module = file.removeprefix("pipelines/").replace("/", ".")
        entry = f"{module}.{name}".removesuffix(".__init__")  # the reference describes it with the class
        return f'<autoref identifier="{entry}" optional>`{name}`</autoref>'

    return CODE_LINK.sub(reference, markdown)


def on_page_content(html: str, **_) -> str:
    """Take the marks of diffusers' docstrings from types and names."""

    def plain(html: re.Match) -> str:
        return NAME_IN_TYPE.sub(lambda name: name[1] or name[2] or name[3], html[0])

    return NAME_IN_TEXT.sub(r"<code>\1</code>", DOCSTRING_TYPE.sub(plain, html))
