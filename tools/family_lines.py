"""Write the table of lines per family in docs/add-a-model.md.

    python -m tools.family_lines

A line counts for a family if it is there for this family alone: its adapter's module, a module of dpdmd.models that
only this adapter imports, and its rows in the tables of ComfyUI with the functions that only they use. What several
families share counts for none, and neither do tests, recipes and configurations.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dpdmd.models.load import FAMILIES
from dpdmd.store.files import write_text

PAGE = Path("docs", "add-a-model.md")
MODELS, PUBLISH = Path("src", "dpdmd", "models"), Path("src", "dpdmd", "publish")
MOST = 150
# Families from before the limit that are over it.
OLD = ("Lumina2Pipeline", "StableDiffusion3Pipeline")


def lines_of_families() -> dict[str, tuple[int, int]]:
    """{pipeline: lines of its adapter, lines of its export}."""
    adapters = _adapter_lines()
    rows, layouts = _row_lines(PUBLISH / "comfyui.py", "FAMILIES"), _row_lines(PUBLISH / "comfyui_layout.py", "TABLES")
    return {name: (adapters[name], rows.get(name, 0) + layouts.get(name, 0)) for name in sorted(FAMILIES)}


def _adapter_lines() -> dict[str, int]:
    """Lines of each adapter's module, and of the modules that nothing else imports."""
    modules = {path.stem: path for path in MODELS.glob("*.py")}
    imported = Counter(name for path in Path("src").rglob("*.py") for name in _imports(path) if name in modules)
    found = {}
    for pipeline, (module, _) in FAMILIES.items():
        path = modules[module.rpartition(".")[2]]
        own = [path, *(modules[name] for name in _imports(path) if imported[name] == 1)]
        found[pipeline] = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in own)
    return found


def _imports(path: Path) -> set[str]:
    """Names of the modules of dpdmd.models that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "dpdmd.models":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dpdmd.models."):
            names.add(str(node.module).split(".")[2])
    return names


def _row_lines(path: Path, table: str) -> dict[str, int]:
    """Lines of each row of a table, and of what the file defines for that row alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = {name: node for node in tree.body for name in _defined(node)}
    rows = next(node.value for node in tree.body if table in _defined(node) and isinstance(node, ast.Assign))
    assert isinstance(rows, ast.Dict), f"{table} is a dictionary"
    reached = {
        str(ast.literal_eval(key)): (value, _reached(value, defined))
        for key, value in zip(rows.keys, rows.values, strict=True)
        if key is not None
    }
    users = Counter(name for _, names in reached.values() for name in names)
    return {
        pipeline: _length(value) + sum(_length(defined[name]) for name in names if users[name] == 1)
        for pipeline, (value, names) in reached.items()
    }


def _defined(node: ast.stmt) -> Iterator[str]:
    """Names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    for target in node.targets if isinstance(node, ast.Assign) else ():
        if isinstance(target, ast.Name):
            yield target.id


def _reached(node: ast.AST, defined: dict[str, ast.stmt]) -> set[str]:
    """Names of a module that a node uses, also through others."""
    found: set[str] = set()
    left = [node]
    while left:
        names = {n.id for n in ast.walk(left.pop()) if isinstance(n, ast.Name) and n.id in defined} - found
        found |= names
        left += [defined[name] for name in names]
    return found


def _length(node: ast.expr | ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def table() -> str:
    """The lines of all families as a Markdown table."""
    rows = ["| pipeline | adapter | export | together |", "|---|---|---|---|"]
    for pipeline, (adapter, export) in lines_of_families().items():
        rows.append(f"| `{pipeline}` | {adapter} | {export} | {adapter + export} |")
    return "\n".join(rows)


def fill(page: str) -> str:
    """The page with its table brought up to date."""
    return re.sub(
        r"<!-- family lines -->.*?<!-- end -->",
        lambda _: f"<!-- family lines -->\n\n{table()}\n\n<!-- end -->",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    """Rewrite the page."""
    write_text(PAGE, fill(PAGE.read_text(encoding="utf-8")))
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
