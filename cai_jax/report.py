"""Writes the report of a run: `python -m cai_jax.report WORKDIR [--out=PAGE.html]`."""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from cai_jax.errors import InputError, exits_on_input_error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Bad usage is one line, as every other error."""
        raise InputError(f"{message}; see --help")


@exits_on_input_error
def main(arguments: list[str] | None = None) -> None:
    """Reads the finished steps of a workdir and writes one HTML page about them."""
    parser = _Parser(prog="python -m cai_jax.report", description=__doc__, allow_abbrev=False)
    parser.add_argument("workdir", type=Path, help="the workdir of a run")
    parser.add_argument("--out", type=Path, help="default: WORKDIR/report/index.html")
    options = parser.parse_args(arguments)

    from cai_jax.stages import report

    steps, reproduced = report.discover(options.workdir)
    html = report.page(report.default_config(), steps, reproduced)
    out = options.out or options.workdir / "report" / report.PAGE
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(html, encoding="utf-8", errors="backslashreplace")
    os.replace(partial, out)
    print(out)


if __name__ == "__main__":
    main()
