"""Entry point: commands, exit codes, errors without tracebacks."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import typer

from expunge.cli import app as web
from expunge.cli import audit, compare, find, forget, inspect, ledger, meta, plan, report, run
from expunge.errors import ExpungeError

app = typer.Typer(
    name="expunge",
    help="Find it, forget it, prove it: remove data from trained models, and say with evidence what is gone, kept and leaking.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command("demo", epilog="Example: expunge demo")(run.demo)
app.add_typer(find.app, name="find", epilog=find.EXAMPLE)
app.command(
    "forget",
    epilog="Example: expunge forget --benchmark digits --forget class=3 --method ssd --out unlearned",
)(forget.forget)
app.command(
    "audit", epilog="Example: expunge audit --benchmark digits --forget class=3 --model unlearned --json"
)(audit.audit)
app.add_typer(ledger.app, name="ledger", epilog=ledger.EXAMPLE)
app.command("run", epilog="Example: expunge run study.yaml --set seeds=0-4")(run.run)
app.command("compare", epilog="Example: expunge compare runs/demo runs/mine")(compare.compare)
app.command("meta-evaluate", epilog="Example: expunge meta-evaluate --models 3 --out meta")(
    meta.meta_evaluate
)
app.command("report", epilog="Example: expunge report runs/demo")(report.report)
app.command("app", epilog="Example: expunge app runs")(web.app)
app.command("list", epilog="Example: expunge list methods")(inspect.list_)
app.command("show", epilog="Example: expunge show npo")(inspect.show)
app.command("validate", epilog="Example: expunge validate study.yaml")(plan.validate)
app.command("plan", epilog="Example: expunge plan study.yaml")(plan.plan)
app.command("env", epilog="Example: expunge env --json")(inspect.env)


def main() -> None:
    """Run the command line. Exit codes: 0 ok, 1 finished with failures, 2 bad input, 3 missing prerequisite, 130 interrupted."""
    quiet_libraries()
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        code = app(standalone_mode=False)
    except ExpungeError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("interrupted; what is complete is kept, the same command goes on from there\n")
        code = 130
    except OSError as error:
        if debug:
            raise
        sys.stderr.write(
            f"error: {error.filename or 'a file'}: {error.strerror or error}; what was complete before is untouched\n"
        )
        code = 1
    except Exception as error:
        # Usage errors of the parser know how to show themselves and their exit code.
        if debug or not hasattr(error, "exit_code"):
            raise
        error.show()  # pyright: ignore
        code = error.exit_code  # pyright: ignore
    sys.exit(code if isinstance(code, int) else 0)


def quiet_libraries() -> None:
    """Progress bars and notices of the libraries underneath would tear ours apart."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("accelerate").setLevel(logging.ERROR)
