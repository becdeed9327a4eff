"""What a reader needs besides the text: places to link to, figures in words, and the chapters to take along.

1. Every numbered equation, every check cell and every numbered section has an anchor that any page may link to:
   ``[DDPM 8](#ddpm-8)``, ``[✓](#check-ddpm-8)``, ``[](#s2-6)``.
2. Every figure that a cell drew says its title and its axes, from the cell's own code, to those who do not see it.
3. A chapter's page offers the chapter as a notebook and as a script.
"""

import ast
import re
import shutil
from pathlib import Path

import equations
from docutils import nodes
from sphinx.util import logging

SECTION = re.compile(r"(\d+)\.(\d+)(?= )")
TAG = re.compile(r"\\tag\*?\{([^}]*)\}")
ALSO = re.compile(r"Also (.+)\.")
CHECK = re.compile(r"^# check:(.*)", re.M)


def place_anchors(app, doctree) -> None:
    """Give sections, equations and check cells the names by which other pages link to them."""
    labels = app.env.get_domain("std")

    def name(node: nodes.Element, label: str, title: str) -> None:
        node["ids"].append(nodes.make_id(label))
        labels.anonlabels[label] = app.env.docname, node["ids"][-1]
        labels.labels[label] = app.env.docname, node["ids"][-1], title

    if not re.match(r"chapters/\d", app.env.docname):
        return
    for section in doctree.findall(nodes.section):
        title = section[0].astext()
        if number := SECTION.match(title):
            name(section, f"s{number[1]}-{number[2]}", title)
    for kind, pattern, prefix in (
        (nodes.math_block, TAG, ""),
        (nodes.emphasis, ALSO, ""),
        (nodes.literal_block, CHECK, "check-"),
    ):
        for node in list(doctree.findall(kind)):
            statements = [one for mark in pattern.findall(node.astext()) for one in equations.expand(mark)]
            if statements:
                place = nodes.target()  # before the node: inside of an equation many of them would take up room
                node.parent.insert(node.parent.index(node), place)
                for statement in statements:
                    name(place, prefix + equations.anchor(statement), statement)


# ---- figures in words -----------------------------------------------------------------------------------------------

AXES = {"xlabel": "Across", "ylabel": "Up"}
SPOKEN = (  # TeX, and how one reads it aloud
    (r"\\(bar|hat|tilde)\s*\{?\\?([a-zA-Z]+)\}?", r" \2 \1 "),
    (r"\\(?:mathrm|text|mathbf|boldsymbol|operatorname)\b", ""),
    (r"\\sqrt\b", " root of "),
    (r"\\(?:mid\b|\|)", " given "),
    (r"\\(?:l?dots|cdots)\b", " … "),
    (r"\\(?:to|rightarrow)\b", " to "),
    (r"\\[,;:! ]", " "),
    (r"\\([a-zA-Z]+)", r" \1 "),
    (r"[\\${}]", ""),
    (r"\s+", " "),
    (r" (?=[_^,;.:)])", ""),
)


def words(text: str) -> str:
    """A text of matplotlib as it is read aloud."""
    for tex, spoken in SPOKEN:
        text = re.sub(tex, spoken, text)
    return text.strip()


def alternative_text(code: str) -> str:
    """What the figure of a cell shows, in words that stand in the cell: its titles, the heading first, and its axes."""
    said: dict[str, list[str]] = {"suptitle": [], "title": [], **{axis: [] for axis in AXES}}
    tree = ast.parse(re.sub(r"^[%!].*", "", code, flags=re.M))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    for call in sorted(calls, key=lambda call: (call.end_lineno, call.end_col_offset)):
        called = getattr(call.func, "attr", getattr(call.func, "id", "")).removeprefix("set_")
        texts = [(called, call.args[0])] if call.args else []
        for kind, value in texts + [(keyword.arg, keyword.value) for keyword in call.keywords]:
            if kind in said and isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value:
                said[kind].append(words(value.value).rstrip("."))
    heading, panels = said["suptitle"], said["title"]
    if not heading + panels:
        return ""
    parts = list(heading)
    if panels:
        parts.append(("Panels: " if heading else "") + "; ".join(panels))
    parts += [f"{how}: {'; '.join(dict.fromkeys(said[axis]))}" for axis, how in AXES.items() if said[axis]]
    return ". ".join(parts) + "."


def describe_figures(app, doctree) -> None:
    for cell in doctree.findall(lambda node: node.get("nb_element") == "cell_code" if hasattr(node, "get") else False):
        images = list(cell.findall(nodes.image))
        if not images:
            continue
        alt = alternative_text(next(cell.findall(nodes.literal_block)).astext())
        if not alt:
            logging.getLogger(__name__).warning("a figure without a title has no alternative text", location=cell)
        for image in images:
            image["alt"] = alt


# ---- chapters to take along -----------------------------------------------------------------------------------------


def offer_files(app, pagename, templatename, context, doctree) -> None:
    """Put the chapter's .py beside the notebook among the downloads at the head of its page."""
    script = Path(app.srcdir).parent / f"{pagename}.py"
    if not re.match(r"chapters/\d", pagename) or not script.is_file():
        return
    target = Path(app.outdir) / "_sources" / f"{pagename}.py"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(script, target)
    for group in context.get("header_buttons", ()):
        if group.get("label") == "download-buttons":
            link = context["pathto"](f"_sources/{pagename}.py", 1)
            button = {
                "type": "link",
                "url": link,
                "text": ".py",
                "tooltip": "Download script file",
                "icon": "fas fa-code",
            }
            group["buttons"].insert(1, button | {"label": "download-script-button"})


def setup(app) -> dict:
    app.connect("doctree-read", place_anchors)
    app.connect("doctree-read", describe_figures)
    app.connect("html-page-context", offer_files, priority=800)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
