"""Reporting: claims that can fail, run folders that are never half-written, pages that open anywhere.

Claim                   a sentence, what theory expects, what was measured, whether it holds, and where
                        the expected number comes from
save, load, Run         results/<name>/<digest of the config>/: config, claims, arrays, figure, source, environment
page, section, ...      self-contained HTML, every text escaped by construction
publish                 a file that is there whole or not at all
"""

from numdl.reporting._boards import Score, by_origin, claims_text, margin_text, margins_text, printable, scoreboard_text
from numdl.reporting._claims import Claim
from numdl.reporting._encoding import arrays
from numdl.reporting._files import writable
from numdl.reporting._machine import environment, versions
from numdl.reporting._markup import tag
from numdl.reporting._pages import (
    claims_table,
    details,
    figure_image,
    glossary,
    page,
    run_section,
    scoreboard,
    section,
    table,
)
from numdl.reporting._prose import prose
from numdl.reporting._runs import Run, digest, load, publish, save

__all__ = [
    "Claim",
    "Run",
    "Score",
    "arrays",
    "by_origin",
    "claims_table",
    "claims_text",
    "details",
    "digest",
    "environment",
    "figure_image",
    "glossary",
    "load",
    "margin_text",
    "margins_text",
    "page",
    "printable",
    "prose",
    "publish",
    "run_section",
    "save",
    "scoreboard",
    "scoreboard_text",
    "section",
    "table",
    "tag",
    "versions",
    "writable",
]
