"""What this book needs of Sphinx, so that it builds from a fresh clone and is read without a network.

1. Stage ``../chapters/*.ipynb`` into the git-ignored ``book/chapters/``, beside the pages that are made from them and
   from the library: the notation, the equation index, the papers' tables, the API reference.
2. Serve MathJax from the book itself: one file out of the package sphinx-mathjax-offline.
3. Hand displayed equations to MathJax as they are written and as JupyterLab shows them. Sphinx would put those of
   several lines into a split environment, in which TeX allows no \\tag.
4. Leave out the theme's Thebe scripts (unused here; loaded twice, they raise an error in the browser's console), and
   the link to a Font Awesome server that matplotlib's animations carry (the theme brings the same icons).
"""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from sphinx.errors import ExtensionError

sys.path.insert(0, str(Path(__file__).parents[1]))
import api
import equations
import notation
import paper_tables

CDN_LINK = re.compile(r'<link rel="stylesheet"\s+href="https?://[^"]*font-awesome[^"]*">\s*')


def stage(book: Path) -> None:
    """Bring book/chapters up to date, leaving files that have not changed untouched so that builds stay incremental."""
    root, staged = book.parent, book / "chapters"
    pages = {path.name: path.read_bytes() for path in sorted((root / "chapters").glob("[0-9]*.ipynb"))}
    pages |= {name: text.encode() for name, text in generated(root, {Path(name).stem for name in pages}).items()}
    staged.mkdir(exist_ok=True)
    for path in staged.iterdir():
        if path.is_file() and path.name not in pages:
            path.unlink()
    for name, content in pages.items():
        if not (staged / name).exists() or (staged / name).read_bytes() != content:
            (staged / name).write_bytes(content)


def generated(root: Path, chapters: set[str]) -> dict[str, str]:
    """File name -> Markdown of every page that is made and not written."""
    trace, known = equations.read(root), api.names(root)
    manifest = equations.read_manifest(root)
    index = equations.index_page(trace, manifest, chapters, lambda name: api.entry(name, known))
    own = {
        "equations.md": index,
        "paper_tables.md": paper_tables.page(root, trace.tags),
        "notation.md": notation.page(root),
    }
    return own | api.pages(root, trace.tags)


def find_mathjax() -> Path:
    """Return the one self-contained file of MathJax (TeX in, SVG out; no fonts to fetch)."""
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    path = package and Path(package.submodule_search_locations[0]) / "static" / "mathjax" / "tex-svg-full.js"
    if not path or not path.is_file():
        raise ExtensionError("MathJax is missing; remedy: pip install sphinx-mathjax-offline")
    return path


def copy_mathjax(app) -> None:
    if app.builder.format == "html":
        target = Path(app.outdir) / "_static" / "mathjax"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(find_mathjax(), target)


def keep_equations(app, doctree, docname) -> None:
    for block in doctree.findall(nodes.math_block):
        if not block.get("nowrap"):
            block["nowrap"] = True
            block[:] = [nodes.Text(rf"\[{block.astext()}\]")]


def clean_page(app, pagename, templatename, context, doctree) -> None:
    def is_thebe(asset) -> bool:
        body = getattr(asset, "attributes", {}).get("body") or ""
        return "thebe" in str(getattr(asset, "filename", asset) or "") or "THEBE_JS_URL" in body

    for assets in ("script_files", "css_files"):
        context[assets] = [asset for asset in context.get(assets, []) if not is_thebe(asset)]
    context["body"] = CDN_LINK.sub("", context.get("body") or "")


def setup(app) -> dict:
    stage(Path(app.srcdir))
    app.config.mathjax_path = "mathjax/tex-svg-full.js"
    app.connect("builder-inited", copy_mathjax)
    app.connect("doctree-resolved", keep_equations)
    app.connect("html-page-context", clean_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
