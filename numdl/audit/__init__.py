"""What measurements mean for the one who has to decide: where theory and analysis meet inside the package.

`analysis` hands out numbers; what to conclude from them and what to do stands here.
"""

from numdl.lazy import submodules as _submodules

__getattr__, __dir__ = _submodules(__name__, __path__)
