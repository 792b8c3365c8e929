"""The command line in a fork of this process: a process of its own, as `python -m nrf_repro` has one, without the seconds that the imports take."""
import os
import subprocess
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryFile

from nrf_repro import cli

ROOT = Path(__file__).parent.parent


def _flushed(code):
    "The exit status after the streams were flushed; 120 if that fails, as Python has it."
    try: sys.stdout.flush(), sys.stderr.flush()
    except OSError: return 120
    return code


def _as_a_process(words, cwd, env, out, err):
    "Never returns: runs the command with these files as its output, and ends with its status."
    try:
        os.chdir(cwd)
        os.environ.update(env)
        sys.path.insert(0, str(cwd))        # as `python -m` does
        for stream, fd in ((out, 1), (err, 2)): os.dup2(stream, fd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = open(1, 'w', encoding='utf-8', closefd=False), open(2, 'w', encoding='utf-8', closefd=False)
        try: code = cli.main(list(map(str, words))) or 0
        except SystemExit as e: code = 0 if e.code is None else e.code
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(_flushed(code))
    finally: os._exit(121)                  # the lines above failed


def run(words, cwd, env, out, err):
    "The exit status of the command, whose output goes to two file descriptors."
    sys.stdout.flush(), sys.stderr.flush()
    if not (pid := os.fork()): _as_a_process(words, cwd, env, out, err)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def printed(code, folder):
    "What Python code prints in a fork that imports from the folder first. Raises AssertionError if it fails."
    with TemporaryFile() as out:
        if not (pid := os.fork()):
            status = 1
            try:
                os.dup2(out.fileno(), 1)
                sys.path.insert(0, str(folder))
                sys.dont_write_bytecode = True      # an edit within a second would not be seen
                sys.stdout = open(1, 'w', encoding='utf-8', closefd=False)
                exec(code, {})
                status = _flushed(0)
            except BaseException: traceback.print_exc()
            finally: os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0, code
        out.seek(0)
        return out.read().decode('utf-8')


def command(*words, cwd=ROOT, **env):
    "What `subprocess.run` would return for the command, with its output as text."
    with TemporaryFile() as out, TemporaryFile() as err:
        status = run(words, cwd, env, out.fileno(), err.fileno())
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode('utf-8'))
    return subprocess.CompletedProcess(words, status, *said)


def piped(words, reader, cwd, err=None):
    "The exit status of the command whose output (and errors, unless `err` is a file for them) a reader sees: a shell command; and what it printed."
    readable, writable = os.pipe()
    with subprocess.Popen(reader, shell=True, stdin=readable, stdout=subprocess.PIPE, text=True) as process:
        os.close(readable)
        status = run(words, cwd, {}, writable, err.fileno() if err else writable)
        os.close(writable)
        seen = process.stdout.read()
    return status, seen
