"""Run answers that nobody has read, and say in words what the tests think of them.

A submission gets a process of its own, and in it every exercise one more, forked after the chapter's setup: an answer
that loops, exits, eats the memory or crashes costs its own points and nothing else. What is run is the instructor's
notebook, the setup and the tests as they stand there, with the student's cells in the place of the reference; an answer
sees one copy of the setup, the tests another, and from the answer they take the functions by name and nothing else.

This is a fence and no jail: an answer and its tests share one process, and an answer can read the disk, the hidden
tests included. Who must expect worse than mischief runs the grader in a container that holds nothing of value. It needs
a system that forks: Linux, or macOS, which does not hold processes to the limit of memory.
"""

import ast
import json
import os
import re
import resource
import secrets
import select
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable

from exercises import EXERCISE_SECONDS, Chapter, Part

SUBMISSION_SECONDS = 29
MEMORY = 4 * 2**30  # bytes of data; PyTorch alone takes 0.8 GB
LONGEST_REPLY = 2**16
LONGEST_REMARK = 300
ANSWER, TESTS = "<answer>", "<tests>"


class Failed(Exception):
    """A process gave no reply; the message says how it ended."""


def apart(work: Callable, seconds: float, leader: bool = False):
    """Return ``work()``, computed in a forked process that is given so long; a leader takes all its children along."""
    receive, send = os.pipe()
    password = secrets.token_hex(16).encode()  # so that what an answer writes into open files is not taken for a reply
    child = os.fork()
    if child == 0:
        try:
            if leader:
                os.setsid()
            for stream in (0, 1, 2):
                os.dup2(os.open(os.devnull, os.O_RDWR), stream)
            os.closerange(3, send), os.closerange(send + 1, 256)  # the reply of the process above is not for this one
            os.write(send, password + json.dumps(work()).encode() + b"\n")
        finally:
            os._exit(1)
    os.close(send)
    reply, deadline = b"", time.monotonic() + seconds
    while not reply.endswith(b"\n") and len(reply) < LONGEST_REPLY:
        if not select.select([receive], [], [], max(0, deadline - time.monotonic()))[0]:
            break
        if not (piece := os.read(receive, LONGEST_REPLY)):
            break
        reply += piece
    late = time.monotonic() >= deadline
    os.close(receive)
    os.killpg(child, signal.SIGKILL) if leader else os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if reply.startswith(password) and reply.endswith(b"\n"):
        return json.loads(reply[len(password) :])
    if late:
        raise Failed(f"took longer than {seconds:.0f} s")
    if status < 0 and status != -signal.SIGKILL:
        raise Failed(f"crashed ({signal.Signals(-status).name})")
    raise Failed("ended Python, for example by os._exit or for want of memory")


def load_modules(chapters: list[Chapter]) -> None:
    """Import what the setups and the tests import, once and not in every process."""
    import torch

    for source in (source for chapter in chapters for source in chapter.setup):
        imports = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), "<setup>", "exec"), {})
    torch.testing.assert_close(torch.zeros(1), torch.zeros(1))  # the first call imports half of PyTorch


def verdicts(chapter: Chapter, answers: dict[str, str]) -> dict[str, str | None]:
    """Return for each tested part None if all its tests hold, and otherwise the first that does not, in words."""
    try:
        return apart(lambda: examine(chapter, answers), SUBMISSION_SECONDS, leader=True)
    except Failed as end:
        return {part.name: f"the submission {end}" for part in chapter.parts if part.tests is not None}


def examine(chapter: Chapter, answers: dict[str, str]) -> dict[str, str | None]:
    """Run the setup, then each answer with its tests in one more process."""
    os.chdir(chapter.path.parent)
    for_answer, for_tests = namespace(chapter), namespace(chapter)
    for_answer |= {name: value for name, value in for_tests.items() if isinstance(value, type)}  # of a class one alone
    limits = {resource.RLIMIT_DATA: MEMORY, resource.RLIMIT_CPU: SUBMISSION_SECONDS, resource.RLIMIT_FSIZE: 0}
    for name, most in (limits | {resource.RLIMIT_CORE: 0}).items():
        resource.setrlimit(name, (most, most))
    tested = [part for part in chapter.parts if part.tests is not None]
    seconds = min(EXERCISE_SECONDS, (SUBMISSION_SECONDS - 4) / len(tested))
    found = {}
    for part in tested:
        if part.answer not in answers:
            found[part.name] = f"there is no cell {part.answer!r} in the notebook: was it deleted?"
            continue
        try:
            found[part.name] = apart(lambda p=part: attempt(p, answers[p.answer], for_answer, for_tests), seconds)
        except Failed as end:
            found[part.name] = f"the answer {end}"
    return found


def namespace(chapter: Chapter) -> dict:
    """What a kernel holds after the setup cells; pictures go nowhere."""
    names: dict = {"__name__": "__main__", "display": lambda *things, **options: None}
    for source in chapter.setup:
        exec(source, names)
    return names


def attempt(part: Part, answer: str, for_answer: dict, for_tests: dict) -> str | None:
    """Run an answer and then its tests; return None, or why it fails."""
    fence()
    held = tools(for_tests)
    try:
        exec(read(answer), for_answer)
        missing = [name for name in part.defines if name not in for_answer]
        if missing:
            return f"the answer defines no {missing[0]}"
        for_tests |= {name: for_answer[name] for name in part.defines}
        if not replaced(held):
            exec(compile(part.tests, TESTS, "exec"), for_tests)
    except BaseException as error:
        if not replaced(held):
            return in_words(error, part)
    if names := replaced(held):
        return f"the answer replaces {', '.join(names)}, with which it is tested"
    return None


def read(answer: str) -> types.CodeType:
    """Compile an answer; lines for the notebook alone, as %timeit, are left out where Python does not take them."""
    try:
        return compile(answer, ANSWER, "exec")
    except SyntaxError:
        return compile(re.sub(r"^(\s*)[%!].*$", r"\1pass", answer, flags=re.MULTILINE), ANSWER, "exec")


def fence() -> None:
    """From here on this process computes and reads: it writes no file, starts no process, sends no signal or packet."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    families = (
        "socket.",
        "shutil.",
        "subprocess.",
        "pty.",
        "os.exec",
        "os.fork",
        "os.kill",
        "os.posix_spawn",
        "os.spawn",
    )
    single = frozenset(
        f"os.{name}"
        for name in ("chmod", "chown", "link", "mkdir", "remove", "rename", "rmdir", "symlink", "system", "truncate")
    )

    def guard(event, arguments):
        wrote = event == "open" and arguments[0] != os.devnull and (arguments[2] or 0) & writing
        if wrote or event in single or event.startswith(families):
            raise PermissionError(f"an answer may not {'write files' if wrote else f'use {event}'}")

    sys.dont_write_bytecode = True
    sys.addaudithook(guard)


def tools(for_tests: dict) -> list[tuple[str, object, dict]]:
    """What tests are made of: functions and classes of these modules, methods of tensors, the library and the setup."""
    import torch

    top = (
        "builtins",
        "itertools",
        "math",
        "minidiff",
        "torch.testing",
        "torch.linalg",
        "torch.special",
        "torch.autograd",
    )
    owners = {name: value for name, value in for_tests.items() if getattr(value, "__module__", "") == "__main__"}
    owners |= {"torch": torch, "Tensor": torch.Tensor}
    for name, module in list(sys.modules.items()):
        if name.startswith(tuple(f"{each}." for each in top)) or name in top:
            owners[name] = module
            for each in vars(module).values():
                if isinstance(each, type) and each.__module__.startswith("minidiff"):
                    owners[each.__qualname__] = each
    return [
        (name, owner, {key: value for key, value in vars(owner).items() if callable(value)})
        for name, owner in owners.items()
    ]


def replaced(held: list[tuple[str, object, dict]]) -> list[str]:
    """Name what is no longer what it was."""
    return [
        f"{name}.{key}"
        for name, owner, before in held
        for key, value in before.items()
        if vars(owner).get(key) is not value
    ][:3]


def in_words(error: BaseException, part: Part) -> str:
    """Say what went wrong, where, and never with the text of a hidden test."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    in_answer = [line for name, line in frames if name == ANSWER]
    in_tests = [line for name, line in frames if name == TESTS]
    if isinstance(error, NotImplementedError) and in_answer:
        return "not answered"
    if isinstance(error, SyntaxError) and not in_answer:
        return short(f"the answer is not Python: {error.msg}, line {error.lineno}")
    if isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit):
        return f"the answer ended Python ({type(error).__name__})"
    dull = ("", "Tensor-likes are not close!", "Scalars are not close!")
    lines = [line.split(" at index")[0].strip() for line in str(error).splitlines()]
    said = "; ".join(line for line in lines if line not in dull and not line.startswith("Greatest relative"))
    told = f"{type(error).__name__}: {said}" if said else type(error).__name__
    test = which_test(part.tests, in_tests[-1]) if in_tests else ""
    if in_answer and (not in_tests or frames.index((ANSWER, in_answer[-1])) > frames.index((TESTS, in_tests[-1]))):
        return short(f"the answer raised {told} (its line {in_answer[-1]}{', in ' + test if test else ''})")
    if isinstance(error, AssertionError):
        return short(f"{test} fails{': ' + said if said else ''}")
    return short(f"{test} cannot use what the answer returned: {told}")


def which_test(tests: str, line: int) -> str:
    """Name the test that this line belongs to: its number, the comment above it, and its text if students see it."""
    lines = tests.splitlines()
    border = lines.index("### BEGIN HIDDEN TESTS") + 1 if "### BEGIN HIDDEN TESTS" in lines else len(lines)
    hidden = line > border
    section = [node for node in ast.walk(ast.parse(tests)) if is_test(node) and (node.lineno > border) == hidden]
    section.sort(key=lambda node: node.lineno)
    number = min(sum(node.end_lineno < line for node in section), len(section) - 1)
    top = max(border if hidden else 0, section[number - 1].end_lineno if number else 0)
    above = [text.strip()[2:] for text in lines[top : line - 1] if text.strip().startswith("# ")]
    words = f"{'hidden' if hidden else 'visible'} test {number + 1} of {len(section)}"
    words += f" ({above[-1]})" if above else ""
    return words if hidden else f"{words} `{' '.join(ast.get_source_segment(tests, section[number]).split())}`"


def is_test(node: ast.AST) -> bool:
    """An assert statement, or a call of torch.testing.assert_close."""
    call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func)
    return isinstance(node, ast.Assert) or call == "torch.testing.assert_close"


def short(text: str) -> str:
    """One line that a table can hold."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line if len(line) <= LONGEST_REMARK else line[: LONGEST_REMARK - 1] + "…"
