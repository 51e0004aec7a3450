"""What measurements mean for the one who has to decide: where theory and analysis meet inside the package.

`analysis` hands out numbers; what to conclude from them and what to do stands here. Of a network, its loss and its
optimizer `examine` says whether they will train, what is wrong, how we know, and what to change.

    evidence (records) <- measure (analysis) · predict (theory) · trial -> rules (a table) -> remedies -> report
"""

from numdl.lazy import submodules as _submodules

__getattr__, __dir__ = _submodules(
    __name__, __path__, {"examine": "_examining", "watch": "watching", "instruments": "watching"}
)
