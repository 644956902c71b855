"""Start-up, help, and what becomes of errors, interrupts and closed pipes."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from support.commands import Pair, Run, StandIn

import deltapack
from deltapack import errors
from deltapack.cli.main import COMMANDS

HEAVY = ("torch", "numba", "scipy", "numpy", "rich", "safetensors")


def python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["inspect", "--help"], ["inspect", "PACK"]])
def test_starts_light(arguments: list[str], pair: Pair) -> None:
    code = f"""
import sys
from deltapack.cli.main import cli
cli.main(sys.argv[1:], standalone_mode=False)
print("loaded", [name for name in {HEAVY!r} if name in sys.modules])
print("commands", sorted(name for name in sys.modules if name.startswith("deltapack.cli.commands.")))
"""
    done = python(code, *(pair.pack if argument == "PACK" else argument for argument in arguments))
    assert done.returncode == 0, done.stderr
    assert "loaded []" in done.stdout
    used = ["deltapack.cli.commands.inspect"] if arguments[0] == "inspect" else []
    assert f"commands {used}" in done.stdout


def test_help_lists_commands_and_exit_codes(run: Run) -> None:
    text = run("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in text
    first_words = [line.split()[0] for line in text.split("Exit codes:")[1].splitlines() if line.strip()]
    documented = {int(word) for word in first_words if word.isdigit()}
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    raised = {error.exit_code for error in classes if issubclass(error, errors.DeltapackError)}
    assert documented >= raised | {0}
    assert 'eval "$(deltapack completion bash)"' in text
    assert "130  interrupted" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_summaries_are_those_of_the_commands(name: str, run: Run) -> None:
    from deltapack.cli.main import cli

    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.short_help == COMMANDS[name].summary
    assert run(name, "--help").exit_code == 0


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"deltapack {deltapack.__version__}\n"


def test_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "deltapack", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"deltapack {deltapack.__version__}\n")


@pytest.mark.parametrize("arguments", [["nonsense"], ["inspect"], ["inspect", "/no/such.dpk"], ["verify", "--nonsense"], ["merge", "/"]])
def test_usage_errors_exit_2(arguments: list[str], run: Run) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: deltapack")
    assert result.stdout == ""


@pytest.mark.parametrize(
    "kind",
    [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.DeltapackError)],
)
def test_errors_become_a_paragraph_and_an_exit_code(kind: type[errors.DeltapackError], run: Run, pair: Pair, stand_in: StandIn) -> None:
    stand_in("verify", kind("it is wrong", path="x.dpk", hint="Mend it."))
    result = run("verify", pair.pack)
    assert result.exit_code == kind.exit_code
    assert (result.stdout, result.stderr) == ("", "Error: x.dpk: it is wrong. Mend it.\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "Interrupted; nothing was changed under the final name.\n"),
        (MemoryError(), 1, "Error: out of memory. Fewer --workers need less.\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "Error: /x: Permission denied\n"),
        (OSError("odd"), 1, "Error: odd\n"),
        (BrokenPipeError(32, "Broken pipe"), 0, ""),
    ],
)
def test_what_the_system_raises(
    error: BaseException, code: int, message: str, run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in("apply", error)
    result = run("apply", pair.base, pair.pack, "-o", tmp_path / "out")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", message)


def test_an_interrupted_check_claims_no_output(run: Run, pair: Pair, stand_in: StandIn) -> None:
    stand_in("verify", KeyboardInterrupt())
    assert run("verify", pair.pack).stderr == "Interrupted.\n"


WAITS = """
import sys, time
import deltapack
from deltapack.cli.main import main
def wait(*args, progress=None, **kwargs):
    from deltapack.format.atomic import atomic_file
    with atomic_file(args[2], force=False):
        print("ready", flush=True)
        time.sleep(60)
deltapack.compress = wait
main()
"""


def waiting(pair: Pair, out: Path) -> list[str]:
    """A command that has begun its output, says so, and waits."""
    return [sys.executable, "-c", WAITS, "compress", str(pair.base), str(pair.finetuned), "-o", str(out)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_cleanly(number: signal.Signals, pair: Pair, tmp_path: Path) -> None:
    with subprocess.Popen(waiting(pair, tmp_path / "out.dpk"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait() == 130
        assert process.stderr.read() == "Interrupted; nothing was changed under the final name.\n"
    assert list(tmp_path.iterdir()) == []


def test_a_closed_terminal_stops_cleanly(pair: Pair, tmp_path: Path) -> None:
    """The system sends SIGHUP, and what is printed then goes nowhere."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, waiting(pair, tmp_path / "out.dpk"))
    while b"ready" not in os.read(terminal, 1000):
        pass
    assert list(tmp_path.iterdir())
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert list(tmp_path.iterdir()) == [] and os.waitstatus_to_exitcode(status) == 130


def test_nohup_works_on(pair: Pair, tmp_path: Path) -> None:
    ignoring = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *waiting(pair, tmp_path / "out.dpk")]  # as nohup does
    with subprocess.Popen(ignoring, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGCONT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 130
    assert list(tmp_path.iterdir()) == []


def test_the_library_leaves_signals_alone(pair: Pair, tmp_path: Path) -> None:
    """Only the program sets handlers: a trainer that calls the functions, in whichever thread, has its own."""
    code = """
import signal, sys, threading
numbers = sorted(signal.valid_signals())
before = [signal.getsignal(number) for number in numbers]
import deltapack
from deltapack.cli.main import cli
out = sys.argv[3]
def work():
    deltapack.compress(sys.argv[1], sys.argv[2], out + ".dpk")
    deltapack.apply(sys.argv[1], out + ".dpk", out, resume=True)
thread = threading.Thread(target=work)
thread.start()
thread.join()
deltapack.verify(out + ".dpk", sys.argv[1])
assert [signal.getsignal(number) for number in numbers] == before
print("same")
"""
    done = python(code, pair.base, pair.finetuned, tmp_path / "out")
    assert (done.stdout, done.returncode) == ("same\n", 0), done.stderr


@pytest.mark.parametrize("arguments", [["inspect", "PACK"], ["inspect", "PACK", "--json"], ["--help"], ["inspect", "--help"]])
def test_a_closed_pipe_is_quiet_and_no_error(arguments: list[str], pair: Pair) -> None:
    command = [sys.executable, "-m", "deltapack", *(str(pair.pack) if argument == "PACK" else argument for argument in arguments)]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "PACK"]])
def test_a_full_disk_under_stdout(arguments: list[str], pair: Pair) -> None:
    command = [str(pair.pack) if argument == "PACK" else argument for argument in arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "deltapack", *command], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: No space left on device\n")


def test_on_a_terminal_errors_wrap_and_work_shows_a_bar(pair: Pair, tmp_path: Path) -> None:
    folder = tmp_path / ("long " * 30 + "name")
    folder.mkdir()
    text = (folder / "x.dpk").resolve()
    text.write_text("hello")
    code, shown = on_a_terminal("inspect", text)
    assert code == 3
    lines = shown.splitlines()
    assert " ".join(lines).startswith("Error: /") and len(lines) > 1 and max(map(len, lines)) <= 80

    code, shown = on_a_terminal("compress", pair.base, pair.finetuned, "-o", tmp_path / "out.dpk")
    assert code == 0
    assert "compressing" in shown and "100%" in shown
    code, shown = on_a_terminal(
        "compress", pair.base, pair.finetuned, "-o", tmp_path / "out.dpk", "--force", "--quiet", "--drop-rate", "0.9"
    )
    assert (code, shown) == (0, "")


def test_numba_is_told_to_leave_the_terminal_alone() -> None:
    """With colorama it writes an escape at the end; tests may run where that is not installed."""
    name = "NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING"
    code = f"""
import os, sys
os.environ.pop("{name}", None)
from deltapack.cli.main import main
sys.argv = ["deltapack", "--version"]
try:
    main()
finally:
    print(os.environ.get("{name}"), "numba" in sys.modules)
"""
    assert python(code).stdout.splitlines()[-1] == "1 False"


@pytest.mark.parametrize("words", [[], ["--quiet"], ["-q"]])
def test_no_bars_of_other_libraries_where_nobody_asked_for_some(words: list[str]) -> None:
    """The Hub is asked while arguments are read."""
    name = "HF_HUB_DISABLE_PROGRESS_BARS"
    code = f"""
import os, sys
os.environ.pop("{name}", None)
from deltapack.cli.main import main
sys.stderr.isatty = lambda: {bool(words)}
sys.argv = ["deltapack", "--version", *{words}]
try:
    main()
finally:
    print(os.environ.get("{name}"))
"""
    assert python(code).stdout.splitlines()[-1] == "1"


def on_a_terminal(*args: object) -> tuple[int, str]:
    """Run the command line on a terminal of 80 columns; return its exit code and all it showed."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS="80")
        os.execv(sys.executable, [sys.executable, "-m", "deltapack", *map(str, args)])
    shown = b""
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_after_the_end_ends_the_process_without_a_traceback(name: str) -> None:
    code = f"""
import atexit, os, signal, sys
from deltapack.cli.main import main
atexit.register(os.kill, os.getpid(), signal.{name})
sys.argv = ["deltapack", "--version"]
main()
"""
    done = python(code)
    assert (done.returncode, done.stderr) == (-getattr(signal, name), "")
