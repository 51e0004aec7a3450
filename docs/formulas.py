"""Typeset the formulas of docstrings as MathML, which browsers show without a network.

The docstrings write formulas in the code's own symbols. A line is read token by token into LaTeX, and docutils makes
MathML of it; a line with a character that this does not know stays as it is, in a fixed-width block.
"""

import functools
import html
import re

from docutils.utils.math.latex2mathml import tex2mathml

GREEK = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "pi",
    "rho",
    "sigma",
    "tau",
    "phi",
    "chi",
    "psi",
    "omega",
    "Gamma",
    "Delta",
    "Theta",
    "Lambda",
    "Xi",
    "Pi",
    "Sigma",
    "Phi",
    "Psi",
    "Omega",
]
OPERATORS = {
    "<=": r"\le ",
    ">=": r"\ge ",
    "!=": r"\ne ",
    "->": r"\to ",
    "<-": r"\leftarrow ",
    "~": r"\sim ",
    "*": r"\, ",
    "@": r"\, ",
    "·": r"\cdot ",
    "...": r"\ldots ",
    "==": r"\equiv ",
    "<": "<",
    ">": ">",
    "%": r"\% ",
    "&": r"\& ",
    "−": "-",
    "∞": r"\infty ",
}
NAMED = {
    "ln",
    "log",
    "exp",
    "sin",
    "cos",
    "tan",
    "tanh",
    "max",
    "min",
    "tr",
    "det",
    "argmin",
    "arg",
    "sign",
    "Var",
    "cov",
    "erf",
}
SIGNS = {"sum": r"\sum ", "prod": r"\prod ", "inf": r"\infty "}
TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)|(?P<text>[a-z]{2,}(?:-[a-z]{3,})+)|(?P<word>[A-Za-z]\w*)|(?P<power>\*\*|\^)"
    r"|(?P<operator><=|>=|!=|==|->|<-|\.\.\.|[*~@·<>%&−∞])|(?P<prime>'+)|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|(?P<other>[-+=/,.:;|!?])|(?P<low>_)"
)


class UnreadableError(Exception):
    """A line that is not typeset."""


def block(text):
    """HTML of some lines: each typeset where it can be, all of them as they stand where one cannot."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    least = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    lines = [line[least:] for line in lines if line.strip()]
    try:
        rows = [row(line) for line in lines]
    except UnreadableError:
        return f'<pre class="formula">{html.escape(chr(10).join(lines))}</pre>'
    plain = html.escape("\n".join(lines), quote=True)
    return f'<div class="formula" title="{plain}">' + "".join(f"<div>{cells}</div>" for cells in rows) + "</div>"


def row(line):
    """HTML of one line; columns are kept apart."""
    indent = (len(line) - len(line.lstrip())) // 2
    cells = [_cell(cell) for cell in re.split(r"\s{3,}", line.strip())]
    space = f'<span style="padding-left:{indent}ch"></span>' if indent else ""
    return space + '<span class="column"></span>'.join(cells)


def mathml(latex, display=False):
    """MathML of LaTeX on one line."""
    try:
        known = re.sub(r"\\(?:big|Big)(?![a-z])", "", latex.replace(r"\dots", r"\ldots"))
        return re.sub(r"\n\s*", " ", tex2mathml(known, as_block=display))
    except Exception as error:  # docutils raises its own and IndexError alike
        raise UnreadableError(latex) from error


def _cell(text):
    return html.escape(text) if _is_prose(text) else mathml(latex(text))


def _is_prose(text):
    return not re.search(r"[=<>~^_|*/\[(]|->", text) and bool(re.search(r"[A-Za-z]{2,}", text))


@functools.cache
def latex(text):
    """LaTeX of a formula in the code's symbols; UnreadableError where it holds what is not known."""
    tokens, position = [], 0
    while position < len(text):
        found = TOKEN.match(text, position)
        if not found:
            raise UnreadableError(text)
        tokens.append((found.lastgroup, found[0]))
        position = found.end()
    return _Reader(tokens).all()


class _Reader:
    def __init__(self, tokens):
        self.tokens, self.place = tokens, 0

    def all(self):
        out = []
        while self.place < len(self.tokens):
            out.append(self.atom())
        return "".join(out)

    def peek(self, ahead=0):
        at = self.place + ahead
        return self.tokens[at] if at < len(self.tokens) else ("end", "")

    def take(self):
        token = self.peek()
        self.place += 1
        return token

    def atom(self):
        kind, text = self.take()
        if kind == "space":
            return r"\quad " if len(text) > 1 else self.space()
        if kind == "operator":
            return OPERATORS[text]
        if kind == "power":
            return "^{" + self.script() + "}"
        if kind == "low":
            return "_{" + self.script() + "}"
        if kind == "prime":
            return rf"\text{{{'′' * len(text)}}}"
        if kind == "open":
            return self.group(text)
        if kind == "close":
            raise UnreadableError(text)
        if kind == "text":  # log-normal
            return rf"\text{{{text}}}"
        return self.word(text) if kind == "word" else text

    def group(self, opening):
        closing = {"(": ")", "[": "]", "{": "}"}[opening]
        inside = self.inside(closing)
        left, right = {"{": (r"\{ ", r"\}")}.get(opening, (opening, closing))
        return left + inside + right

    def inside(self, closing):
        out = []
        while self.peek() != ("close", closing):
            if self.peek()[0] == "end":
                raise UnreadableError(closing)
            out.append(self.atom())
        self.take()
        return "".join(out)

    def script(self):
        """What stands after ^ or _: a group without its brackets, or a signed word or number with its primes."""
        kind, text = self.peek()
        if kind == "open":
            self.take()
            return self.inside({"(": ")", "[": "]", "{": "}"}[text])
        if (kind, text) in {("other", "-"), ("other", "+")}:
            self.take()
            return text + (self.script() if self.peek()[0] in {"number", "word"} else "")
        if kind not in {"number", "word", "operator"}:
            raise UnreadableError(text)
        return self.atom()

    def word(self, text):
        if text == "sqrt" and self.peek() == ("open", "("):
            self.take()
            return r"\sqrt{" + self.inside(")") + "}"
        if text == "a" and self.peek()[0] == "space" and self.peek(1)[0] == "word" and _is_text(self.peek(1)[1]):
            return r"\text{a}"
        head, low, tail = text.partition("_")
        known = len(head) == 1 or head in GREEK or head in SIGNS or (len(tail) == 1 and low)
        if known and low and not tail:  # q_{l-1}
            return _symbol(head) + "_{" + self.script() + "}"
        if known and tail and len(tail) <= 5:
            return _symbol(head) + "_{" + ",".join(_symbol(part) for part in tail.split("_")) + "}"
        if known and self.peek() == ("open", "[") and self._short_index():
            self.take()
            return _symbol(head) + "_{" + self.inside("]") + "}"
        return _symbol(text)

    def _short_index(self):
        """Whether the brackets that follow hold an index, as in q[l-1]: E[f(z)] does not."""
        if self.tokens[self.place - 1][1] in {"E", "V", "I", "O"}:
            return False
        for ahead in range(1, 10):
            kind, text = self.peek(ahead)
            if (kind, text) == ("close", "]"):
                return True
            if kind not in {"word", "number", "other", "space"} or (kind == "word" and len(text) > 1):
                return False
        return False

    def space(self):
        """A space beside a word of text, a thin one between factors, none beside a sign."""
        before, after = self.tokens[self.place - 2] if self.place > 1 else ("end", ""), self.peek()
        if any(kind == "text" or (kind == "word" and _is_text(word)) for kind, word in (before, after)):
            return r"\ "
        factors = before[0] in {"word", "number", "close", "prime"} and after[0] in {"word", "number", "open"}
        return r"\," if factors else " "


def _is_text(word):
    plain = len(word) > 1 and word not in NAMED and word not in SIGNS and word not in GREEK and word != "sqrt"
    return plain and not re.fullmatch(r"[A-Za-z]\d+|(?:[A-Za-z]|{})_\w{{0,5}}".format("|".join(GREEK)), word)


def _symbol(word):
    if len(word) == 1:
        return word
    if word in GREEK:
        return rf"\{word} "
    if word in SIGNS:
        return SIGNS[word]
    if re.fullmatch(r"[A-Za-z]\d+", word):
        return f"{word[0]}_{{{word[1:]}}}"
    if word in NAMED:
        return rf"\operatorname{{{word}}} "
    return rf"\text{{{word}}}"
