"""The API reference: what is public in each package, as its source says it; nothing is imported to read it."""

import ast
import re
import textwrap
from collections.abc import Container, Iterator
from itertools import pairwise
from pathlib import Path

from equations import LABEL, anchor, expand

ORDER = ("diffusion", "networks", "data", "sampling", "evaluation", "training", "recipes", "pretrained", "cli")
INTRODUCTION = """# API reference

Every public class and function of the library, package by package: the signature with the shapes that it takes and
gives, what it does, which equation it is, and its source, folded. The pages are made from the source itself when the
book is built. How to read a shape: `Float[Tensor, "batch *dims"]` is a tensor of floating-point numbers whose first
axis counts examples, and whose other axes may be any; the same letters in one signature mean the same number. Of the
commands, the options stand here.
"""
CODE = re.compile(r"(``.*?``|`[^`]*`)")
MARK = re.compile(rf"(?:{LABEL}) (?:Alg\. |Table )?[A-Z]?[\d.]*\d")


def packages(root: Path) -> dict[str, list[Path]]:
    """Package -> its modules; the modules that stand in no package come first, as ``minidiff``."""
    library = root / "minidiff"
    found = {"minidiff": [path for path in sorted(library.glob("*.py")) if not path.name.startswith("__")]}
    return found | {f"minidiff.{name}": sorted((library / name).glob("*.py")) for name in ORDER}


def module_name(path: Path, root: Path) -> str:
    """minidiff/diffusion/gaussian.py -> minidiff.diffusion.gaussian."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def public(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """The classes and functions among these statements whose names say that they are for everybody."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def entries(path: Path, tree: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """What a module has for others: all that is public; of a command, its options."""
    return (node for node in public(tree.body) if path.parent.name != "cli" or node.name == "Options")


def names(root: Path) -> set[str]:
    """Every name that has an entry: modules, public classes and functions, public methods."""
    found = set()
    for modules in packages(root).values():
        for path in modules:
            module = module_name(path, root)
            found.add(module)
            for node in entries(path, ast.parse(path.read_text(encoding="utf-8"))):
                found.add(f"{module}.{node.name}")
                if isinstance(node, ast.ClassDef):
                    found |= {f"{module}.{node.name}.{method.name}" for method in public(node.body)}
    return found


def entry(name: str, known: Container[str]) -> str | None:
    """The anchor of the entry in which ``module:Class.method`` is read: its own, or that of what it is a part of."""
    name = name.replace(":", ".")
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name.lower() or None


def prose(text: str, known: Container[str]) -> str:
    """A docstring's sentence in Markdown: code as code, marks such as (DDPM 7) as links to the equation."""
    parts = CODE.split(re.sub(r"\s+", " ", text.strip()))
    for i in range(0, len(parts), 2):
        plain = re.sub(r"([\\*_<>$\[\]|#~{}])", r"\\\1", parts[i])
        parts[i] = MARK.sub(lambda mark: linked(mark[0], known), plain)
    return "".join(parts)


def linked(mark: str, known: Container[str]) -> str:
    return f"[{mark}](#{anchor(mark)})" if all(statement in known for statement in expand(mark)) else mark


def documentation(node: ast.AST, known: Container[str]) -> list[str]:
    """The docstring in Markdown, its arguments as a list."""
    lines = []
    for block in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
        if block.startswith("Args:"):
            for item in re.split(r"\n    (?=\S)", block)[1:]:
                argument, _, text = item.partition(":")
                lines.append(f"- `{argument}`: {prose(text, known)}")
        else:
            lines.append(prose(block, known))
        lines.append("")
    return lines


def fields(node: ast.ClassDef | ast.FunctionDef, known: Container[str]) -> list[str]:
    """The fields of a class that are followed by words about them, as a list."""
    lines = []
    for field, words in pairwise(node.body if isinstance(node, ast.ClassDef) else ()):
        if isinstance(field, ast.AnnAssign) and isinstance(words, ast.Expr) and isinstance(words.value, ast.Constant):
            lines.append(f"- `{ast.unparse(field.target)}`: {prose(words.value.value, known)}")
    return [*lines, ""]


def start(node: ast.ClassDef | ast.FunctionDef) -> int:
    """The line on which a definition begins, its decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


class Module:
    """One module's part of a page."""

    def __init__(self, path: Path, root: Path, statements: Container[str]):
        self.name, self.path, self.known = module_name(path, root), path.relative_to(root), statements
        text = path.read_text(encoding="utf-8")
        self.tree, self.lines = ast.parse(text), text.splitlines()

    def code(self, first: int, last: int) -> list[str]:
        return ["``````python", *textwrap.dedent("\n".join(self.lines[first - 1 : last])).splitlines(), "``````", ""]

    def signature(self, node: ast.ClassDef | ast.FunctionDef) -> list[str]:
        """From the decorators to the colon, as written; of a class, its fields and its constructor too."""
        spans = [(start(node), node.body[0].lineno - 1)]
        for part in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(part, ast.AnnAssign):
                spans.append((part.lineno, part.end_lineno))
            elif isinstance(part, ast.FunctionDef) and part.name == "__init__":
                spans.append((part.lineno, part.body[0].lineno - 1))
        lines = [line for first, last in spans for line in self.lines[first - 1 : max(first, last)]]
        return ["``````python", *textwrap.dedent("\n".join(lines)).splitlines(), "``````", ""]

    def entry(self, node: ast.ClassDef | ast.FunctionDef) -> list[str]:
        name = f"{self.name}.{node.name}"
        lines = [f"({name})=", f"### {node.name}", "", *self.signature(node), *documentation(node, self.known)]
        lines += fields(node, self.known)
        for method in public(node.body) if isinstance(node, ast.ClassDef) else ():
            lines += [f"({name}.{method.name})=", *self.signature(method), *documentation(method, self.known)]
        where = f"{self.path.as_posix()}, lines {start(node)}–{node.end_lineno}"
        return [*lines, f":::::{{dropdown}} Source: {where}", *self.code(start(node), node.end_lineno), ":::::", ""]

    def page(self) -> list[str]:
        head = [f"({self.name})=", f"## {self.name.rpartition('.')[2]}", "", *documentation(self.tree, self.known)]
        return head + [line for node in entries(self.path, self.tree) for line in self.entry(node)]


def pages(root: Path, statements: Container[str]) -> dict[str, str]:
    """File name -> Markdown: one page for each package, and one that lists them."""
    front = [INTRODUCTION, "| package | |", "|---|---|"]
    found = {}
    for package, modules in packages(root).items():
        file = f"api_{package.rpartition('.')[2]}.md"
        purpose = "What belongs to no package."
        lines = [f"# {package}", ""]
        for path in modules:
            module = Module(path, root, statements)
            if path.name == "__init__.py":
                purpose = documentation(module.tree, statements)[0]
                lines += [f"({module.name})=", "", *documentation(module.tree, statements)]
            else:
                lines += module.page()
        found[file] = "\n".join(lines) + "\n"
        front.append(f"| [{package}]({file}) | {purpose} |")
    return {"api.md": "\n".join(front) + "\n"} | found
