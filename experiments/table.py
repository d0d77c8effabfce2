"""The LAWM paper's table and LAPO's curves: the runs that fill them, and what comes of them.

    python -m experiments.table --config=configs/table.py            runs what is missing
    python -m experiments.table --rebuild --out=DIR                  draws it from raw results

The first runs the jobs of the config one after another, each as a process with its own work
directory under --workdir, and keeps the raw result of each under --results. Finished jobs are
skipped, interrupted ones continue: start the same command again after whatever happened.
"""

import argparse
import shlex
import sys
from pathlib import Path

from experiments import command_line, launch, sweep, table_figures, table_report
from experiments.launch import BAD_INPUT
from experiments.raw_results import read_cells
from experiments.table_jobs import jobs_of
from lawm_jax.errors import InputError, writing

HELP = """
Flags of the sweep:
  --config=FILE.py[:PRESET]  the runs, such as configs/table.py or configs/table.py:paper
  --config.KEY=VALUE         changes one value of it, such as --config.dmc.seeds="(0, 1, 2)"
  --jobs=N                   so many at a time, each on its share of the cores (default 1)
  --share=INDEX/COUNT        only every COUNT-th job from INDEX on (0, 1, ..), one INDEX a host
  --dry_run                  prints the jobs' commands instead
  --workdir=DIR              where the runs work (default: runs/table)
  --data_dir=DIR             where data sets are found or made (default: data)
  --results=DIR              where raw results are kept: DIR/dmc and DIR/lapo (default: results)

Flags of --rebuild: --results, and
  --out=DIR                  where tables and figures are written

Exit codes: 0 done, 1 a job failed, 2 bad input, 75 stopped by a signal (start again to continue).
"""


def rebuild(results: Path, out: Path) -> list[Path]:
    """Writes tables and figures from the raw results in results/dmc and results/lapo.

    Raises:
      InputError: there are no results of the control suite, or they do not fit together; `out`
        cannot be a folder.
    """
    if not (results / "dmc").is_dir():
        raise InputError(f"{results / 'dmc'} not found: --results names the folder above it")
    cells = read_cells(results / "dmc")
    with writing(f"--out={out}"):
        out.mkdir(parents=True, exist_ok=True)
    written = []
    for labels in table_report.LABELS:
        written.append(out / f"table_{labels.removesuffix('%')}pct.csv")
        rows = table_report.rows_of(cells, labels)
        table_report.write_csv(written[-1], table_report.table_estimates(rows))
    written += [out / "diagnostics.csv", out / "table.md"]
    table_report.write_diagnostics(written[-2], cells)
    written[-1].write_text(table_report.markdown(cells))
    written += table_figures.write_figures(cells, out)
    written += table_figures.write_lapo(results / "lapo", out)
    return written


def main(argv: list[str] | None = None) -> int:
    """Reads the command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(f"{__doc__}{HELP}")
        return launch.DONE
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--rebuild", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--share", default="0/1")
    parser.add_argument("--dry_run", action="store_true")
    try:
        arguments, rest = parser.parse_known_args(argv)
        if arguments.rebuild:
            if rest or arguments.out is None:
                raise InputError(
                    f"unexpected '{rest[0]}' beside --rebuild" if rest else "--rebuild needs --out"
                )
            for path in rebuild(arguments.results, arguments.out):
                print(path)
            return launch.DONE
        return _sweep(arguments, rest)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT


def _sweep(arguments: argparse.Namespace, rest: list[str]) -> int:
    parsed = command_line.parse(["table", *rest], needs="dmc")
    if "://" in (parsed.workdir or ""):
        raise InputError(f"--workdir={parsed.workdir}: the runs of a table work in a local folder")
    workdir = Path(parsed.workdir or Path("runs", "table"))
    jobs = sweep.share_of(jobs_of(parsed.config, workdir), arguments.share)
    place = sweep.Place(workdir, parsed.data_dir, arguments.results)
    if arguments.dry_run:
        for job in jobs:
            print(shlex.join(["python", *sweep.command(job, place)[1:]]))
        return launch.DONE
    for flag, folder in (("workdir", workdir), ("results", arguments.results)):
        with writing(f"--{flag}={folder}"):  # said now, not when the first job ends
            folder.mkdir(parents=True, exist_ok=True)
    return sweep.run(jobs, place, arguments.jobs)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise InputError(message)


if __name__ == "__main__":
    sys.exit(main())
