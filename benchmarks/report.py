"""What the benchmarks' command lines share: --json, one line for bad input, the printed table."""

import argparse
import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments import command_line
from lawm_jax import runner
from lawm_jax.errors import InputError

Row = dict[str, Any]


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Makes an InputError of `main` one line on stderr and exit code 2."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return run


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with --json, and the module's docstring as its help."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", help="file to write the figures to, with the command")
    return made


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Any]:
    """The benchmark's own arguments, and the config that the other ones describe.

    Raises:
      InputError: as `check`; no such config or key.
    """
    arguments, rest = parser.parse_known_args()
    check(arguments)
    return arguments, command_line.parse([sys.argv[0], *rest]).config


def check(arguments: argparse.Namespace) -> None:
    """Raises InputError where measuring would be in vain: no folder for --json, or no device."""
    check_target(arguments.json)
    runner.find_devices()


def check_target(path: str | None) -> None:
    """Raises InputError unless --json names a file that can be written, if any."""
    if path is None:
        return
    folder = Path(path).parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"--json={path}: there is no folder {folder} to write to")
    if Path(path).is_dir():
        raise InputError(f"--json={path} is a folder; name a file in it")


def table(device: str, rows: list[Row], columns: Mapping[str, tuple[str, str]]) -> str:
    """Rows as Markdown; a dash where a row lacks a column.

    columns: of the table, row key -> (heading, format).
    """
    lines = [
        f"| step ({device}) | " + " | ".join(heading for heading, _ in columns.values()) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in rows:
        cells = (format(row[key], f) if key in row else "-" for key, (_, f) in columns.items())
        lines.append(f"| {row['step']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_json(path: str, device: str, rows: list[Row], **more: Any) -> None:
    """Writes what a benchmark measured, with the command that did it."""
    written = {"command": command_text(), "device": device, **more, "rows": rows}
    Path(path).write_text(json.dumps(written, indent=2) + "\n")


def command_text() -> str:
    """The command of this process, without --json."""
    arguments = [x for x in sys.argv[1:] if not x.startswith("--json")]
    return shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *arguments])
