"""Turns the formulas of a page, which Markdown's arithmatex has marked, into MathML.

Browsers draw MathML themselves, so that the site needs no script and no network.
MkDocs runs the hook ``on_page_content``.
"""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

_NAME = re.compile(r"(<mi>(?:log|exp|max|min|diag)</mi>)(?=<m(?!o))")
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)


def on_page_content(html: str, **_: Any) -> str:
    return _FORMULA.sub(_mathml, html)


def _mathml(formula: re.Match[str]) -> str:
    tag, tex = formula[1], unescape(formula[2])
    kind = "block" if tag == "div" else "inline"
    # a thin space between the name of a function and its argument, as TeX has it
    drawn = _NAME.sub(r'\1<mspace width="0.17em"/>', convert(tex, display=kind))
    return f'<{tag} class="formula">{drawn}</{tag}>'
