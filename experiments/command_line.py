"""The command line of an experiment: flags, config, and one clear line for every mistake."""

import dataclasses
import difflib
import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from lawm_jax.errors import InputError

# get_config derives other keys from these, which an override would not change.
FROM_ARGUMENT = ("task", "preset", "data.dataset")

HELP = """\
  --config=FILE.py:ARGS   the configuration, such as configs/dmc.py:walker_walk (required)
  --config.KEY=VALUE      changes one value of it, such as --config.seed=1
  --workdir=DIR           where the run keeps everything (default: under runs/, after the config)
  --data_dir=DIR          where data sets are found or made (default: data); both may be gs://...
  --render                also write a video of the final policy
  --distributed=MODE      several hosts: on, off, or auto (default), which tells by the environment
  --profile               also write a trace of one dispatch a phase, for TensorBoard or XProf
  --help                  this text
"""


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """A command line, parsed and checked."""

    config: ConfigDict  # locked, overrides applied
    config_file: str  # "FILE.py:ARGS" as it was given
    overrides: dict[str, Any]  # key -> value
    workdir: str | None
    data_dir: str
    render: bool
    profile: bool
    distributed: str

    def run_name(self) -> str:
        """A directory name for the run: the config file, its arguments, the overrides sorted."""
        file, _, args = self.config_file.partition(":")
        parts = [Path(file).stem, *re.split(r"[,\s]+", args)]
        parts += [f"{key}={value}" for key, value in sorted(self.overrides.items())]
        name = re.sub(r"[^\w.=+-]+", "-", "_".join(part for part in parts if part))
        if len(name) <= 150:
            return name
        return f"{name[:140]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def parse(argv: list[str], needs: str = "task") -> CommandLine:
    """Parses the command line; argv[0] is the program. Raises InputError for every mistake.

    needs: a key that tells configs of this experiment from those of others.
    """
    config_file, argv = _take_config_file(argv)
    config = _load(config_file)
    if needs not in config:
        raise InputError(
            f"'{config_file}' is not a config of this experiment: it has no '{needs}'; --help "
            "names one that is"
        )
    overrides = _overrides(argv)
    for key, value in overrides.items():
        _check_key(config, key)
        if key in FROM_ARGUMENT and value != str(config[key]):
            raise InputError(
                f"config key '{key}' decides other keys: choose it in the config's argument, such "
                "as --config=configs/dmc.py:walker_walk,expert,tiny"
            )

    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("data_dir", "data", "", flag_values=values)
    flags.DEFINE_boolean("render", False, "", flag_values=values)
    flags.DEFINE_boolean("profile", False, "", flag_values=values)
    flags.DEFINE_enum("distributed", "auto", ["auto", "on", "off"], "", flag_values=values)
    try:
        rest = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        known = [
            "config", "workdir", "data_dir", "render", "profile", "distributed", "help"
        ]
        raise InputError(
            f"unknown flag '--{error.flagname}'; nearest: '--{_nearest(error.flagname, known)}'"
        ) from error
    except flags.IllegalFlagValueError as error:
        raise InputError(_wrong_value(config, overrides, str(error))) from error
    except flags.Error as error:
        raise InputError(" ".join(str(error).split())) from error
    if rest:
        raise InputError(f"unexpected argument '{rest[0]}'; flags are written --NAME=VALUE")
    return CommandLine(
        config=values.config,
        config_file=config_file,
        overrides=config_flags.get_override_values(values["config"]),
        workdir=values.workdir,
        data_dir=values.data_dir,
        render=values.render,
        profile=values.profile,
        distributed=values.distributed,
    )


def _take_config_file(argv: list[str]) -> tuple[str, list[str]]:
    """Returns the value of --config, and argv without it."""
    for i, arg in enumerate(argv):
        if arg in ("--config", "-config"):
            return "".join(argv[i + 1 : i + 2]), argv[:i] + argv[i + 2 :]
        if re.match("--?config=", arg):
            return arg.partition("=")[2], argv[:i] + argv[i + 1 :]
    raise InputError("--config is missing; write for example --config=configs/dmc.py:walker_walk")


def _load(config_file: str) -> ConfigDict:
    """Calls get_config; config_flags would bury what it raises in a traceback."""
    name, _, arg = config_file.partition(":")
    path = Path(name)
    if not path.is_file():
        others = [str(other) for other in path.parent.glob("*.py") if other.stem != "__init__"]
        others = others or [str(other) for other in Path("configs").glob("[!_]*.py")]
        raise InputError(
            f"config file '{name}' not found"
            + (f"; nearest: '{_nearest(name, others)}'" if others else "")
        )
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec) if spec else None
    if spec:
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise InputError(f"'{name}' is no config file: a Python file that defines get_config")
    try:
        return module.get_config(*([arg] if ":" in config_file else []))
    except ValueError as error:
        raise InputError(str(error)) from error


def _overrides(argv: list[str]) -> dict[str, str]:
    """The config keys on the command line with the text of their values."""
    matches = [re.match(r"--?(?:no)?config\.([^=]*)=?(.*)", arg, re.DOTALL) for arg in argv]
    return {match[1]: match[2] for match in matches if match}


def _check_key(config: ConfigDict, key: str) -> None:
    values = dict(_flatten(config))
    if key in values:
        return
    inside = [other for other in values if other.startswith(f"{key}.")]
    if inside:
        raise InputError(f"config key '{key}' is a group; set one of its keys: {', '.join(inside)}")
    raise InputError(f"unknown config key '{key}'; nearest: '{_nearest(key, values)}'")


def _flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _wrong_value(config: ConfigDict, overrides: Mapping[str, str], message: str) -> str:
    match = re.match(r"flag --config\.([\w.]+)=", message)
    if match is None:
        return " ".join(message.split())
    key = match[1]
    text = overrides[key]
    kind = type(dict(_flatten(config))[key]).__name__
    article = "an" if kind == "int" else "a"
    return f"config key '{key}' is {article} {kind}, got '{text}'" + _mended(kind, text)


def _mended(kind: str, text: str) -> str:
    if kind == "bool":
        return "; write true or false"
    try:
        number = float(text)
    except ValueError:
        return ""
    return f"; write {round(number)}" if kind == "int" and number == round(number) else ""


def _nearest(name: str, choices: Iterable[str]) -> str:
    """The choice most like name, by its whole or by its last dotted part."""

    def likeness(choice: str) -> float:
        parts = name.rpartition(".")[2], choice.rpartition(".")[2]
        matcher = difflib.SequenceMatcher
        return matcher(None, name, choice).ratio() + matcher(None, *parts).ratio()

    return max(choices, key=likeness)
