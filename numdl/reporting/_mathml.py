"""Formulas as MathML, from the way they are written in docstrings: |y_L|^2 <= (1 + h / 2)^L sqrt(n) E[f(z)].

Reading order: indices (q_{l+1}), powers (n^2, A^+, w*), primes, products side by side, fractions (a / b takes all
factors before it and one after it), sums, relations. Words that are no symbols stay words; what cannot be read stays as
it is written.
"""

import re
from typing import NamedTuple

from numdl.reporting._markup import Markup, formula, tag

SMALL = "alpha α beta β gamma γ delta δ epsilon ε eps ε zeta ζ eta η theta θ kappa κ lambda λ mu μ nu ν xi ξ pi π rho ρ"
LARGE = "sigma σ tau τ phi φ chi χ psi ψ omega ω Gamma Γ Delta Δ Theta Θ Lambda Λ Sigma Σ Phi Φ Psi Ψ Omega Ω"
LETTERS = f"{SMALL} {LARGE}".split()
GREEK = dict(zip(LETTERS[::2], LETTERS[1::2], strict=True))
NAMED = {"sum": "∑", "inf": "∞", "grad": "∇"}
FUNCTIONS = (
    "arccos cos cosh det diag erf exp inf ln log max mean median min relu sech sgn sigmoid sign sin sinh sqrt tan"
)
UPRIGHT = set(FUNCTIONS.split()) | {"grad", "sum", "tanh", "tr", "var", "Var"}
OPERATORS = {
    "<=": "≤", ">=": "≥", "!=": "≠", "->": "→", "=>": "⇒", "<<": "≪", ">>": "≫", "...": "…", "-": "−", "*": "·",
    "~": "∼",
}  # fmt: skip
SAYING = {*OPERATORS, *"=<>+/^"} - {"..."}  # signs that no prose has
CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}
TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)|(?P<word>[^\W\d_]+)|(?P<sign><=|>=|!=|->|=>|<<|>>|\.\.\.|.)"
)


GAP = tag("mspace", width="0.3em")


class Token(NamedTuple):
    """A number, a word or a sign, and whether there is space on either side of it."""

    kind: str
    text: str
    before: bool
    after: bool


class Unreadable(ValueError):  # noqa: N818
    """A formula that this grammar does not know."""


def formulas(lines):
    """Lines of formulas as markup: cells are parted by two spaces or more and stand below each other."""
    rows = [tag("div", *(tag("span", cell(text)) for text in _cells(line)), class_="row") for line in lines]
    return tag("div", tag("div", *rows, class_="rows"), class_="formulas")


def cell(text):
    """A formula as MathML, or what are words rather as text with indices set."""
    tokens = tokenize(text)
    words = sum(token.kind == "word" and _is_word(token.text) for token in tokens)
    if words > sum(token.kind != "sign" or token.text in SAYING for token in tokens) - words:
        return formula(text)
    try:
        return tag("math", Reader(tokens).read(), displaystyle="true")
    except Unreadable:
        return formula(text)


def tokenize(text):
    """The tokens of a formula; spaces are kept as what its neighbours know of them."""
    found = [(match.lastgroup, match[0]) for match in TOKEN.finditer(text)]
    around = [("space", ""), *found, ("space", "")]
    return [
        Token(kind, text, around[i][0] == "space", around[i + 2][0] == "space")
        for i, (kind, text) in enumerate(found)
        if kind != "space"
    ]


class Reader:
    """Reads tokens from the left; every method returns markup of what it read."""

    def __init__(self, tokens):
        self.tokens, self.at, self.bars = tokens, 0, 0

    def read(self):
        """All of it."""
        shown = self._sum(())
        if self.at < len(self.tokens):
            raise Unreadable(self.tokens[self.at].text)
        return shown

    def _next(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def _take(self):
        token = self._next()
        if token is None:
            raise Unreadable("it ends too early")
        self.at += 1
        return token

    def _sum(self, ends):
        """Products with signs between them, up to one of the closing signs or the end."""
        made = []
        while (token := self._next()) is not None and token.text not in ends and not self._closes(token):
            if token.text in (")", "]", "}"):
                raise Unreadable(token.text)
            made.append(self._product(ends) if self._begins(token) else _sign(self._take()))
        return _row(made)

    def _begins(self, token):
        """Whether a factor begins here."""
        return token.kind != "sign" or token.text in CLOSING

    def _closes(self, token):
        """Whether a bar is the end of an absolute value: it has no space before it, and there is one to end."""
        return token.text == "|" and self.bars > 0 and not token.before and self._ended()

    def _ended(self):
        previous = self.tokens[self.at - 1]
        return previous.kind != "sign" or previous.text in (")", "]", "}", "|", "'", "*", "+")

    def _product(self, ends):
        factors = []
        while (token := self._next()) is not None and token.text not in ends and not self._closes(token):
            if token.text == "/" and factors:
                self._take()
                factors = [tag("mfrac", _row(_bare(factors)), _row(_bare([self._factor()])))]
            elif self._begins(token):
                factors += self._gap(token, bool(factors))
                factors.append(self._factor())
            else:
                break
        return _row(factors)

    def _gap(self, token, inside):
        """A space beside a word or a function, where there is one in the text."""
        previous = self.tokens[self.at - 1] if self.at else None
        long = any(other is not None and other.kind == "word" and len(other.text) > 1 for other in (previous, token))
        return [GAP] if token.before and long and previous is not None and (inside or previous.kind != "sign") else []

    def _factor(self):
        """A symbol, number, word or group with its index, power and primes."""
        base, low, high = self._atom(), None, None
        while (token := self._next()) is not None and not token.before:
            if token.text == "_" and low is None:
                self._take()
                low = self._small()
            elif token.text == "^" and high is None:
                self._take()
                high = self._small()
            elif token.text == "'":
                self._take()
                high = _row([part for part in (high, tag("mo", "′")) if part])
            elif token.text in ("*", "+") and high is None and self._nothing_follows(token):
                high = _sign(self._take(), raised=True)
            else:
                break
        if low is None and high is None:
            return base
        name = {(True, False): "msub", (False, True): "msup", (True, True): "msubsup"}[
            low is not None, high is not None
        ]
        return tag(name, getattr(base, "shown", base), *(part for part in (low, high) if part is not None))

    def _nothing_follows(self, token):
        """Whether no factor stands behind it, so that a star or plus belongs to what is before it: w*, K+."""
        following = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else None
        return token.after or following is None or (following.kind == "sign" and following.text not in "([{")

    def _small(self):
        """What stands low or high: a group without its braces, a sign and a number, or one symbol."""
        token = self._take()
        if token.text in ("{", "("):
            inner = self._sum((CLOSING[token.text],))
            self._take()
            return inner
        if token.text in "+-*":
            following = self._next()
            if following is None or following.before or following.kind == "sign":
                return _sign(token, raised=True)
            return _row([_sign(token), _symbol(self._take())])
        if token.kind == "sign":
            raise Unreadable(token.text)
        return _symbol(token)

    def _atom(self):
        token = self._take()
        if token.text == "|":
            return self._group(token)
        if token.text in CLOSING:
            return self._group(token)
        if token.text == "sqrt" and self._next() is not None and self._next().text == "(":
            return tag("msqrt", _row(_bare([self._group(self._take())])))
        return self._long_name(token)

    def _group(self, opened):
        self.bars += opened.text == "|"
        inside = self._sum((CLOSING[opened.text],) if opened.text != "|" else ())
        if self._next() is None:
            raise Unreadable(opened.text)
        closed = self._take()
        self.bars -= opened.text == "|"
        shown = _row([tag("mo", opened.text), inside, tag("mo", closed.text)])
        return _Group(shown, inside) if opened.text == "(" else shown

    def _long_name(self, token):
        """A name in words, such as weight_variance, stays one; else one symbol."""
        names = [token.text]
        while token.kind == "word" and len(names[0]) > 1 and names[0] not in GREEK and self._joined():
            self._take()
            names.append(self._take().text)
        return tag("mtext", "_".join(names)) if len(names) > 1 else _symbol(token)

    def _joined(self):
        """Whether an underscore and a word of more than one letter follow."""
        low, word = [*self.tokens[self.at : self.at + 2], None, None][:2]
        index = low is not None and low.text == "_" and not low.before
        return index and word is not None and word.kind == "word" and len(word.text) > 1


class _Group(NamedTuple):
    """What stands in round brackets, with them and without."""

    shown: Markup
    inside: Markup


def _bare(factors):
    """A single group without its brackets, since the fraction's line or the root holds it together."""
    if len(factors) == 1 and isinstance(factors[0], _Group):
        return [factors[0].inside]
    return [part.shown if isinstance(part, _Group) else part for part in factors]


def _row(parts):
    parts = [getattr(part, "shown", part) for part in parts]
    return parts[0] if len(parts) == 1 else tag("mrow", *parts)


def _symbol(token):
    if token.kind == "number":
        return tag("mn", token.text)
    if token.text in NAMED:
        return tag("mo", NAMED[token.text])
    if token.text in GREEK:
        return tag("mi", GREEK[token.text])
    if token.text in UPRIGHT or len(token.text) == 1 or re.fullmatch(r"d[A-Za-z]", token.text):
        return tag("mi", token.text)
    return tag("mtext", token.text)


def _sign(token, *, raised=False):
    text = "·" if token.text == "." and token.before == token.after else OPERATORS.get(token.text, token.text)
    space = "0.35em" if token.text in ",;:" else None
    return tag("mo", "∗" if raised and token.text == "*" else text, lspace="0" if space else None, rspace=space)


def _is_word(text):
    return len(text) > 1 and text not in GREEK and text not in UPRIGHT and not re.fullmatch(r"d[A-Za-z]", text)


def _cells(line):
    return re.split(r"\s{2,}", line.strip())
