"""Flags of the command line, by absl: one set a command, the leaves of a config, the options of a sampler."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from absl import flags

from lmlab import config as config_lib

HELP = {"--help", "-help", "-h", "--helpfull", "--helpshort"}


class UsageError(ValueError):
    """A command line that asks for something that is not there."""


class Helped(Exception):
    """--help was printed; there is nothing more to do."""


class Flags:
    """The flags of one command, kept apart from absl's global ones.

    doc: what --help prints above the flags.
    """

    def __init__(self, doc: str | None):
        self.doc = inspect.cleandoc(doc or "")
        self.values = flags.FlagValues()

    def __getattr__(self, name: str) -> Any:
        return self.values[name].value

    def string(self, name: str, default: str, text: str) -> None:
        flags.DEFINE_string(name, default, text, flag_values=self.values)

    def strings(self, name: str, text: str) -> None:
        """A flag that may be given several times; its value is a list."""
        flags.DEFINE_multi_string(name, [], text, flag_values=self.values)

    def integer(self, name: str, default: int, text: str) -> None:
        flags.DEFINE_integer(name, default, text, flag_values=self.values)

    def boolean(self, name: str, default: bool, text: str) -> None:
        flags.DEFINE_boolean(name, default, text, flag_values=self.values)

    def options(self, function: Callable) -> list[str]:
        """Flags from keywords-only parameters: their names, defaults, and the lines `name: text` of the docstring."""
        doc = inspect.getdoc(function) or ""
        names = []
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            told = re.search(rf"^{name}: (.*)$", doc, re.MULTILINE)
            text, default = told.group(1) if told else "", parameter.default
            if "Sequence" in str(parameter.annotation):
                flags.DEFINE_multi_string(name, [default], text, flag_values=self.values)
            else:
                define = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float}
                define.get(type(default), flags.DEFINE_string)(name, default, text, flag_values=self.values)
            names.append(name)
        return names

    def parse(self, argv: list[str], positional: bool = False) -> list[str]:
        """Sets the flags; returns what is not a flag, which is refused unless `positional`."""
        if HELP & set(argv):
            self.help()
            raise Helped
        try:
            rest = self.values(["lmlab", *argv])[1:]
        except flags.UnrecognizedFlagError as error:
            hint = "" if "Did you mean" in str(error) else "; add --help to see those there are"
            raise UsageError(str(error).rstrip(" ?") + hint) from None
        except flags.IllegalFlagValueError as error:
            raise UsageError(self._illegal(error)) from None
        if rest and not positional:
            raise UsageError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
        return rest

    def config(self, argv: list[str], required: bool = False) -> tuple[str, dict[str, Any]]:
        """Parses, with --config=FILE:VARIANT and --config.KEY=VALUE: (spec, overrides by dotted key).

        Keys are looked up here, before ml_collections sees them, for an error of one line.
        """
        from ml_collections import config_flags

        spec, asks = value(argv, "config"), bool(HELP & set(argv))
        keys = [
            match.group(1) for match in (re.match(r"--?(?:no)?config\.([^=]+)", arg) for arg in argv) if match
        ]
        if not spec:
            self.string("config", "", "experiment FILE[:VARIANT]; `lmlab list` shows them")
            if keys and not asks:
                raise UsageError(f"--config.{keys[0]} without --config=FILE[:VARIANT]")
            if required and not asks:
                raise UsageError("--config=FILE[:VARIANT] is needed; `lmlab list` shows what there is")
            self.parse(argv)
            return "", {}
        config, _ = config_lib.load(spec)
        if asks:
            self.help()
            print(f"\nLeaves of {spec}:")
            for key, leaf in config_lib.leaves(config):
                print(f"  --config.{key}={leaf!r}")
            raise Helped
        for key in keys:
            config_lib.check_key(config, key)
        argv = without(argv, "config")
        config_flags.DEFINE_config_dict(
            "config", config, "experiment FILE[:VARIANT]", flag_values=self.values, sys_argv=["lmlab", *argv]
        )
        self.parse(argv)
        return spec, dict(config_flags.get_override_values(self.values["config"]))

    def _illegal(self, error: flags.IllegalFlagValueError) -> str:
        """absl's "flag --NAME=VALUE: what int() said" as what was received and what is allowed."""
        match = re.match(r"flag --([\w.]+)=(.*?): ", str(error), re.DOTALL)
        if not match or match.group(1) not in self.values:
            return str(error)
        name, received = match.group(1), match.group(2)
        return f"--{name}: received {received!r}; allowed: a value of type {self.values[name].flag_type()}"

    def require(self, name: str) -> str:
        if not self.values[name].value:
            raise UsageError(f"--{name} is needed")
        return self.values[name].value

    def help(self) -> None:
        print(self.doc + "\n\nFlags:")
        for name in self.values:
            flag = self.values[name]
            default = "" if flag.default in (None, "", []) else f"  (default {flag.default_as_str})"
            print(f"  --{name}: {flag.help}{default}")


def value(argv: list[str], name: str) -> str:
    """The value of a flag, looked at before flags are parsed; "" if it is not given."""
    found = ""
    for i, arg in enumerate(argv):
        match = re.fullmatch(rf"--?{name}(?:=(.*))?", arg, re.DOTALL)
        if match:
            found = match.group(1) if match.group(1) is not None else "".join(argv[i + 1 : i + 2])
    return found


def without(argv: list[str], name: str) -> list[str]:
    """`argv` without a flag and its value."""
    rest, skip = [], False
    for arg in argv:
        match = re.fullmatch(rf"--?{name}(=.*)?", arg, re.DOTALL)
        if not skip and not match:
            rest.append(arg)
        skip = bool(match and match.group(1) is None)
    return rest
