"""An experiment's Config from the command line, and the bounds of its fields: every wrong one is said in one line."""

import contextlib
import dataclasses
import difflib
import io
import re

SEEDS = 2**32 - 1  # the largest seed: what a random key takes whatever jax's flags say
COUNTS = 10**8  # the largest size or count: XLA ends the process where the bytes of a square array pass 64 bits


class UsageError(Exception):
    """What the person at the command line can mend: one line, exit code 2."""


def configure(name, kind, arguments, *, tiny=False, quick=False):
    """The Config `kind` of experiment `name` from `--field value` arguments."""
    arguments = list(arguments)
    default = chosen(kind, tiny=tiny, quick=quick)
    groups = _groups(name, kind, arguments)
    for field, group in groups:
        expected = next(f.type for f in dataclasses.fields(kind) if f.name == field)
        shown = expected.__name__ if isinstance(expected, type) else expected
        got = _values(group)
        wrong = f"--{field} must be {shown}{_written(shown, default, field)}; got {' '.join(got) or 'nothing'}"
        if shown != "str" and "str" not in str(expected) and not all(_plain(value) for value in got):
            raise UsageError(f"{name}: {wrong}")
        _parse(name, kind, group, default, wrong)
    config = _parse(name, kind, arguments, default, f"these options do not go together: {' '.join(arguments)}")
    return checked(name, config)


def chosen(kind, *, tiny=False, quick=False):
    """The default config of a size: full, tiny, or quick, which is tiny where an experiment has no other."""
    if quick and hasattr(kind, "quick"):
        return kind.quick()
    return kind.tiny() if tiny or quick else kind()


def checked(name, config):
    """The config, its whole numbers in range and no list of them empty.

    A seed is in 0..2^32-1; any other whole number counts something: from 1, or from 0 where the defaults or the tiny
    version have a 0 there, to 10^8. Lists may be empty only where the defaults or the tiny version have an empty one.
    """
    usual = [kind() for kind in (type(config), type(config).tiny)]
    for field in dataclasses.fields(config):
        value, known = getattr(config, field.name), [getattr(other, field.name) for other in usual]
        if isinstance(value, tuple) and not value and all(known):
            raise UsageError(f"{name}: --{field.name} must hold at least one value; got none")
        seed = field.name == "seed"
        least = 0 if seed or any(entry == 0 for entry in _whole(known)) else 1
        most = SEEDS if seed else COUNTS
        for entry in _whole(value):
            if not least <= entry <= most:
                raise UsageError(f"{name}: --{field.name} must be an integer in {least}..{most}; got {_short(entry)}")
    return config


def help_text(name, kind):
    """The experiment's fields and their defaults."""
    import tyro

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], prog=f"python -m experiments run {name}")
    return said.getvalue()


def _parse(name, kind, arguments, default, wrong):
    import tyro

    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(kind, args=arguments, default=default)
    except SystemExit:
        raise UsageError(f"{name}: {wrong}") from None
    except (ValueError, TypeError) as error:  # the config's own check
        raise UsageError(f"{name}: {error}") from error


def _groups(name, kind, arguments):
    """The arguments as (field, [--field, values...]), every field known and given once."""
    known, groups = [field.name for field in dataclasses.fields(kind)], {}
    for argument in arguments:
        if re.match(r"--[A-Za-z]", argument):
            field = _field(name, known, argument)
            if field in groups:
                raise UsageError(f"{name}: --{field} must be given once; got {groups[field][0]} and {argument}")
            groups[field] = [argument]
        elif groups:
            groups[next(reversed(groups))].append(argument)
        else:
            raise UsageError(f"{name}: expected --field value; got {argument!r}")
    return groups.items()


def _field(name, known, argument):
    asked = re.split(r"[=.]", argument[2:])[0].replace("-", "_")
    if asked in known:
        return asked
    if asked.removeprefix("no_") in known:
        return asked.removeprefix("no_")
    close = difflib.get_close_matches(asked, known, n=3, cutoff=0.4)
    said = [f"--{other.replace('_', '-')}" for other in close or known]  # as --help writes them
    hint = f"did you mean {' or '.join(said)}?" if close else f"it has {', '.join(said)}"
    raise UsageError(f"{name}: unknown field {argument.partition('=')[0]}: {hint}")


def _written(shown, default, field):
    """How a value of a type is written where that is not plain, by the default's example."""
    if shown == "bool":
        return f", written --{field} or --no-{field.replace('_', '-')}"
    example = getattr(default, field)
    plain = isinstance(example, tuple) and example and not isinstance(example[0], tuple)
    return f", written --{field} {' '.join(map(str, example))}" if plain else ""


def _values(group):
    """The values of [--field, values...] or [--field=value]."""
    _, sign, value = group[0].partition("=")
    return ([value] if sign else []) + group[1:]


def _plain(value):
    """Whether a number is written as people write it: Python would take 1_0 for ten, and digits of any script."""
    return value.isascii() and not set(value) & set("_ \t\r\n")


def _whole(value):
    """The whole numbers in a value, lists within lists included."""
    if isinstance(value, (list, tuple)):
        return [entry for part in value for entry in _whole(part)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def _short(number):
    return str(number) if number.bit_length() < 200 else f"a number of {number.bit_length()} bits"
