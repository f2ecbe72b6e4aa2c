"""rag/ is built in layers: a module imports from its own package and from layers below it, and there are no cycles."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from rag.runs import PROJECT

# From the bottom: a package or a file of rag/, several of one height in one line.
LAYERS = [
    {"errors", "lazy", "marginalize", "products", "memory", "console", "safe_text"},
    {"terminal"},
    {"files", "words", "processes", "progress", "objectives"},
    {"hub", "finite", "text_files", "metrics"},
    {"fingerprints", "json_files", "text_tables", "minilm"},
    {"runs"},
    {"trust"},
    {"parts", "saved_model", "index", "int8", "compose", "miniwiki"},
    {"tasks", "pretrained", "cli", "stages"},
    {"encoders", "download"},
    {"retrievers", "generators"},
    {"checkpoint"},
    {"model"},
    {"classify"},
    {"decoding", "reopen"},
    {"training", "evaluation"},
    {"scratch", "reports"},
    {"checkpoint_config"},
    {"analysis", "ask", "demo", "wiki"},
    {"compare", "reproductions", "search", "sweep"},
    {"commands"},
]
LONGEST = 450  # lines; what is longer holds two subjects


def modules() -> dict[str, Path]:
    files = {}
    for file in sorted((PROJECT / "rag").rglob("*.py")):
        parts = list(file.relative_to(PROJECT).with_suffix("").parts)
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """Every module of rag/ that a file imports, at its top or inside a function."""
    imported = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "rag":
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                imported.add(whole if whole in known else node.module)
        elif isinstance(node, ast.Import):
            imported |= {name.name for name in node.names if name.name.split(".")[0] == "rag"}
    return imported


def room(module: str) -> str:
    """ "retrievers" of "rag.retrievers.dense"; "" of rag itself."""
    return (module.split(".") + [""])[1]


def test_every_module_imports_from_below_alone():
    known = modules()
    height = {name: number for number, names in enumerate(LAYERS) for name in names}
    assert not {room(module) for module in known} - {""} - set(height), "a new room: give it its layer"
    climbs = [
        f"{module} imports {other}"
        for module, file in known.items()
        for other in imports(file, known)
        if room(module) and room(other) != room(module) and height[room(other)] >= height[room(module)]
    ]
    assert not climbs


def test_no_two_modules_import_one_another_however_long_the_way():
    known = modules()
    edges = defaultdict(
        set, {m: imports(file, known) - {m} for m, file in known.items() if "__init__" not in file.name}
    )
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in sorted(edges[module]):
                visit(other, (*way, module))
            done.add(module)

    for module in sorted(edges):
        visit(module, ())


def at_the_top(file: Path) -> list[ast.stmt]:
    """The imports that are made when a file is imported: not those of a function, or for type checkers."""
    found: list[ast.stmt] = []
    waiting = list(ast.parse(file.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        elif (
            isinstance(node, ast.Try)
            or isinstance(node, ast.If)
            and "TYPE_CHECKING" not in ast.dump(node.test)
        ):
            waiting += [each for each in ast.iter_child_nodes(node) if isinstance(each, ast.stmt)]
    return found


@pytest.mark.parametrize(
    "module", ["rag.commands.evaluating", "rag.commands.indexing", "rag.ask.session", "rag.ask.documents"]
)
def test_what_trains_nothing_waits_for_no_lightning(module):
    """Nor for what fits a calibration, where one is only used: a fifth of the seconds before the first answer."""
    known, way = modules(), {module: module}
    waiting, heavy = [module], {"lightning_fabric", "pytorch_lightning", "torchmetrics", "sklearn", "pandas"}
    while waiting:
        file = known[importer := waiting.pop()]
        for node in at_the_top(file):
            names = [each.name for each in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            for name in names:
                assert name.split(".")[0] not in heavy, f"{way[importer]} imports {name}"
                inside = name if name in known else name.rpartition(".")[0]
                if inside in known and inside not in way:
                    way[inside] = f"{way[importer]} → {inside}"
                    waiting.append(inside)
    assert len(way) > 50


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_file_has_one_subject(module):
    assert len(modules()[module].read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("folder", sorted(f.parent.name for f in (PROJECT / "rag").glob("*/__init__.py")))
def test_a_room_has_a_face_that_says_what_it_is_for(folder):
    text = (PROJECT / "rag" / folder / "__init__.py").read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
