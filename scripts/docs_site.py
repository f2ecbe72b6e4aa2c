"""What the site of docs/ is generated from, as a hook of mkdocs (mkdocs.yml).

reference/architecture.md   every module with the first sentence of its docstring
reference/settings.md       every setting of every file under configs/, with its comment
reference/help.md           the --help text of every command
reference/api.md            the public objects: what each package's face names
source/…                    the project's files, for links that lead out of docs/ and for the architecture

Nothing is imported: everything is read from the files, so that the site can be built without torch.
"""

import ast
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")
SCRIPTS = ("train.py", "build_index.py", "evaluate.py")
HELP = {  # command: the module that holds its help text
    "python train.py": "rag/commands/train.py",
    "python build_index.py": "rag/commands/build_index.py",
    "python evaluate.py": "rag/commands/evaluate.py",
    "python -m rag.ask": "rag/ask/__main__.py",
    "python -m rag.ask.page": "rag/ask/page.py",
    "python -m rag.analysis": "rag/analysis/__main__.py",
    "python -m rag.compare": "rag/compare.py",
    "python -m rag.search": "rag/search.py",
    "python -m rag.reproductions": "rag/reproductions.py",
    "python -m rag.download": "rag/download/__main__.py",
    "python -m rag.demo": "rag/demo.py",
    "python -m rag.wiki": "rag/wiki.py",
    "python -m rag.miniwiki": "rag/miniwiki/__main__.py",
}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".toml": "toml", ".cff": "yaml"}


# -- hooks of mkdocs -----------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to the project's files to their pages."""
    return with_links(markdown, page.file.src_uri)


# -- pages ---------------------------------------------------------------------------------------


def pages() -> dict[str, str]:
    """All generated pages: path below docs/ → Markdown."""
    generated = {
        "reference/architecture.md": architecture(),
        "reference/settings.md": settings(),
        "reference/help.md": help_texts(),
        "reference/api.md": api(),
    }
    waiting = [
        (f"docs/{path.name}", path.read_text(encoding="utf-8")) for path in (PROJECT / "docs").glob("*.md")
    ]
    waiting += [(f"docs/{path}", text) for path, text in generated.items()]
    waiting += [("", "[changes](CHANGELOG.md) [contributing](CONTRIBUTING.md)")]
    while waiting:  # linked Markdown may link further
        origin, text = waiting.pop()
        for match in LINK.finditer(without_code(text)):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[1]))
            path = f"source/{page_name(target)}"
            if target.startswith(("docs/", "..")) or path in generated or not (PROJECT / target).is_file():
                continue
            generated[path] = source_page(target)
            if target.endswith(".md"):
                waiting.append((target, generated[path]))
    return generated


def page_name(target: str) -> str:
    return target if target.endswith(".md") else f"{target}.md"


def source_page(target: str) -> str:
    """A file of the project as a page, which the search leaves out."""
    file = PROJECT / target
    head = "---\nsearch:\n  exclude: true\n---\n\n"
    if file.suffix == ".md":
        return file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        return head + notebook(json.loads(file.read_text(encoding="utf-8")))
    text = file.read_text(encoding="utf-8")
    return f"{head}# {target}\n\n{fenced(text, LANGUAGES.get(file.suffix, 'text'))}\n"


def fenced(text: str, language: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`{3,}", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def notebook(content: dict[str, Any]) -> str:
    """A notebook's text, code and outputs."""
    parts = []
    for cell in content["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else fenced(source, "python"))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(
                    f'<img alt="output" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
                )
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(fenced(text, "text"))
    return "\n\n".join(parts) + "\n"


def architecture() -> str:
    """Every module of rag/ in one line each, by package."""
    lines = [
        "# Architecture",
        "",
        "A module imports from its own package and from the layers below it, which `tests/test_layers.py` enforces. "
        "The way of a question through the system:",
        "",
        fenced(diagram(), "text"),
        "",
        "This page is generated from the modules' docstrings.",
    ]
    packages = [PROJECT / "rag", *sorted(each.parent for each in (PROJECT / "rag").glob("*/__init__.py"))]
    for package in packages:
        name = package.relative_to(PROJECT).as_posix()
        lines += [
            "",
            f"## {name} {{ #{name.replace('/', '-')} }}",
            "",
            first_sentence(package / "__init__.py"),
            "",
        ]
        lines += ["| file | subject |", "|---|---|"]
        for file in sorted(package.glob("*.py")):
            if file.name != "__init__.py":
                path = file.relative_to(PROJECT).as_posix()
                lines.append(f"| [{file.name}](../../{path}) | {cell(first_sentence(file))} |")
    lines += ["", "## The scripts", "", "| file | subject |", "|---|---|"]
    lines += [f"| [{name}](../../{name}) | {cell(first_sentence(PROJECT / name))} |" for name in SCRIPTS]
    return "\n".join(lines) + "\n"


def diagram() -> str:
    """The drawing of README.md."""
    (block,) = re.findall(
        r"```text\n(question x.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.S
    )
    return block


def first_sentence(file: Path) -> str:
    """The first paragraph of a module's docstring, cut after its first sentence."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    end = re.search(r"(?<=[^.\d])\.(?= [A-Z])", paragraph)  # not the dots of "4.5" nor those of "e.g. this"
    return paragraph[: end.end()] if end else paragraph


def cell(text: str) -> str:
    """Plain text for Markdown: nothing of it is markup, but for code between backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    marked = (
        p if n % 2 else re.sub(r"([\\*_\[\]])", r"\\\1", p).replace("<", "&lt;") for n, p in enumerate(parts)
    )
    return "".join(marked).replace("|", r"\|")


def settings() -> str:
    """Every file under configs/: what it is for, what it starts from, its settings with values and comments."""
    configs = PROJECT / "configs"
    lines = [
        "# Settings",
        "",
        "Everything in `configs/`, generated from the files. `group=choice` takes another file of a group, and "
        "`name=value` overrides a setting; see [Change an experiment](../experiments.md).",
        "",
        "## All commands",
    ]
    for name in ("base", "train", "evaluate", "build_index", "ask", "demo_page"):
        lines += config_section(configs / f"{name}.yaml", f"{name}.yaml", "")
    groups = sorted(folder for folder in configs.iterdir() if folder.is_dir() and folder.name != "experiment")
    for group in groups:
        lines += ["", f"## {group.name}"]
        for file in sorted(group.glob("*.yaml")):
            title = f"every {group.name}" if file.stem[0] == "_" else f"{group.name}={file.stem}"
            lines += config_section(file, title, f"{group.name}.")
    lines += ["", "## experiment", "", "Each header holds the commands that run it.", ""]
    lines += ["| experiment | subject |", "|---|---|"]
    for file in sorted((configs / "experiment").rglob("*.yaml")):
        if not file.name.startswith("_"):
            name = file.relative_to(configs / "experiment").with_suffix("").as_posix()
            path = file.relative_to(PROJECT).as_posix()
            about = " ".join(header(file)).split(". ")[0].rstrip(".")
            lines.append(f"| [{name}](../../{path}) | {cell(about)} |")
    return "\n".join(lines) + "\n"


def config_section(file: Path, title: str, prefix: str) -> list[str]:
    text = file.read_text(encoding="utf-8")
    package = re.match(r"# @package (\S+)", text)
    if package:
        prefix = "" if package[1] == "_global_" else f"{package[1]}."
    content = yaml.safe_load(text) or {}
    lines = ["", f"### {title}", "", *prose(header(file))]
    if isinstance(content, dict) and (start := content.get("defaults")):
        chosen = ", ".join(f"`{each}`" for each in map(default, start) if each != "_self_")
        lines += [f"Starts from {chosen}.", ""] if chosen else []
    rows = list(leaves(yaml.compose(text), text.splitlines(), prefix))
    if rows:
        lines += ["| setting | value | meaning |", "|---|---|---|"]
        lines += [f"| `{name}` | `{code(value)}` | {cell(comment)} |" for name, value, comment in rows]
    return lines


def default(entry: str | dict[str, str | None]) -> str:
    """An entry of a defaults list, as it would be typed."""
    if isinstance(entry, str):
        return entry
    ((group, choice),) = entry.items()
    return f"{group}={'null' if choice is None else choice}"


def prose(lines: list[str]) -> list[str]:
    """A header's comment: indented lines are commands."""
    out: list[str] = []
    for line in lines:
        indented = line.startswith("  ")
        if indented and (not out or not out[-1].startswith("    ")):
            out.append("")
        if not indented and out and out[-1].startswith("    "):
            out.append("")
        out.append(f"    {line.strip()}" if indented else cell(line))
    return [*out, ""] if out else []


def code(value: str) -> str:
    return value.replace("|", r"\|").replace("`", "'")


def header(file: Path) -> list[str]:
    """The comment at the head of a config, without its package line."""
    comment_lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            comment_lines.append(line[1:].removeprefix(" ").rstrip())
    return comment_lines


def leaves(node: Any, lines: list[str], prefix: str) -> Iterator[tuple[str, str, str]]:
    """(dotted name, value as written, comment) of every leaf of a YAML mapping."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name.rpartition(".")[2] == "defaults":
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from leaves(value, lines, f"{name}.")
            continue
        line = key.start_mark.line
        comments = [after_value(lines[line])]
        while line + 1 < len(lines) and re.match(r"\s+#", lines[line + 1]):  # a comment that goes on below
            line += 1
            comments.append(lines[line].strip(" #"))
        yield name, written(value), " ".join(filter(None, comments))


def after_value(line: str) -> str:
    comment = re.search(r"\s#\s?(.*)$", line)
    return comment[1].strip() if comment else ""


def written(node: Any) -> str:
    if isinstance(node, yaml.ScalarNode):
        return node.value or "null"
    text = yaml.serialize(node)
    return json.dumps(yaml.safe_load(text), ensure_ascii=False)


def help_texts() -> str:
    """The help text of every command, as --help prints it."""
    lines = ["# Help texts", "", "What `--help` prints for each command.", ""]
    for command, name in HELP.items():
        tree = ast.parse((PROJECT / name).read_text(encoding="utf-8"))
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        text = constants.get("USAGE") or ast.get_docstring(tree) or ""
        lines += [f"## {command}", "", fenced(text.strip(), "text"), ""]
    return "\n".join(lines)


def api() -> str:
    """The public objects of every package: those that its face names."""
    lines = [
        "# Python API",
        "",
        "What each package offers to others, from its docstrings. Names are loaded when they are first used, so that "
        "`import rag` waits for nothing.",
    ]
    seen: set[str] = set()
    lines += [
        "",
        "## rag.marginalize",
        "",
        "::: rag.marginalize",
        "    options:",
        "      show_root_heading: false",
        "      show_root_toc_entry: false",
        "      heading_level: 3",
    ]
    lines += ["", "## rag.reopen", "", "::: rag.reopen.reopen"]
    for package in [
        PROJECT / "rag",
        *sorted(each.parent for each in (PROJECT / "rag").glob("*/__init__.py")),
    ]:
        module = ".".join(package.relative_to(PROJECT).parts)
        names = {
            name: f"{module}.{module_name}.{name}"
            for name, module_name in face(package / "__init__.py").items()
        }
        names = {name: path for name, path in names.items() if path not in seen}
        seen |= set(names.values())
        if names:
            lines += ["", f"## {module}", "", first_sentence(package / "__init__.py")]
            lines += [line for path in names.values() for line in ("", f"::: {path}")]
    return "\n".join(lines) + "\n"


def face(file: Path) -> dict[str, str]:
    """{name: module} of a package's face."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "face":
            return ast.literal_eval(node.args[1])
    return {}


# -- links ---------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    return re.sub(r"^(`{3,}).*?^\1\s*$", "", text, flags=re.S | re.M)


def with_links(markdown: str, src_uri: str) -> str:
    """Links of a page that lead to files of the project, led to the pages of these files."""
    if src_uri.startswith("source/"):
        original = src_uri.removeprefix("source/")
        origin = original if (PROJECT / original).is_file() else original.removesuffix(".md")
        if not origin.endswith((".md", ".ipynb")):
            return markdown
    else:
        origin = f"docs/{src_uri}"

    def lead(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[1]))
        anchor = match[2] or ""
        if target.startswith("docs/"):
            to = target.removeprefix("docs/")
        elif (PROJECT / target).is_dir():
            to, anchor = "reference/architecture.md", f"#{target.rstrip('/').replace('/', '-')}"
        elif (PROJECT / target).is_file():
            to = f"source/{page_name(target)}"
        else:
            return match[0]  # which mkdocs reports as broken
        return posixpath.relpath(to, posixpath.dirname(src_uri) or ".") + anchor

    parts = re.split(r"(^`{3,}.*?^`{3,}\s*$)", markdown, flags=re.S | re.M)
    return "".join(part if number % 2 else LINK.sub(lead, part) for number, part in enumerate(parts))
