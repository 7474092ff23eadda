"""`python -m runner [COMMAND] ...`: parse, set the environment, and only then import what computes."""

import importlib
import os
import sys

from runner import VERSION
from runner.text import visible
from shared.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run one command. The exit status: 0 done, 1 a check or the system failed, 2 the user's mistake, 130 interrupted,
    141 nobody reads the output any more."""
    try:
        status = run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has seen enough, as `| head` has; nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # of a file or folder that nobody gave a meaning to, such as a disk that fails
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return 1
    return status


def run(arguments: list[str]) -> int:
    """Parse and dispatch: the module of a command has the command's name."""
    from runner import cli, environment, recipe, resume
    from runner.sweeping import space

    if arguments[:1] == ["--version"]:
        print(f"rosetta-rnn {VERSION}")
        return 0
    options = (
        resume.resumed(arguments) or recipe.started(arguments) or cli.parse(arguments, space.default_of(arguments))
    )
    if path := getattr(options, "json", None):
        from shared.files import require_writable

        require_writable(path)
    name = next(name for name, kind in cli.COMMANDS.items() if isinstance(options, kind))
    runtime = getattr(options, "runtime", cli.RuntimeConfig(device=getattr(options, "device", "auto")))
    workers = getattr(options, "workers", 2 if name == "check" else getattr(options, "processes", 1))
    environment.prepare(runtime, workers or environment.available_cores())
    command = importlib.import_module(f"runner.{name}")
    from runner.memory import OTHERWISE, shortage_explained

    with shortage_explained(lambda: OTHERWISE.get(name, "Use a machine with more memory, or a smaller model.")):
        status: int = command.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
