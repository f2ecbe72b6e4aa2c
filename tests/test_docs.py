"""README, CONTRIBUTING and docs/: their commands are those that the programs take, their Python runs, their links lead
somewhere. The generated pages of the site are made from what is there.

Shell blocks are run by bash (and by zsh, where it is installed) with programs that only write down their arguments;
each is then checked by the program that it names. The slow tests run them, on the demo that RAG_DEMO names.
"""

import ast
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_local import PASSAGES, QUESTIONS, TINY

from rag.cli import check_script
from rag.compose import compose_config
from rag.runs import PROJECT

DEMO = Path(os.environ.get("RAG_DEMO", PROJECT / "outputs" / "demo")).resolve()
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
LANGUAGES = {"bash", "python", "text", "yaml", "json"}
NAMED = {"rag.ask": "ask", "rag.ask.page": "demo_page"}  # modules that compose a configuration of their own
SCRIPTS = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    every_block = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\S*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            every_block.append(Block(page.relative_to(PROJECT).as_posix(), line, match[1], match[2]))
    return [block for block in every_block if not languages or block.language in languages]


def of(*languages: str):
    return pytest.mark.parametrize("block", blocks(*languages), ids=str)


# -- shell ---------------------------------------------------------------------------------------


def commands(block: Block, folder: Path, shell: str = "bash") -> list[list[str]]:
    """The program and arguments of every command that a shell would start for a block."""
    programs, log = folder / "programs", folder / "log"
    programs.mkdir(exist_ok=True)
    for name in ("python", "make", "pip", "torchrun", "jupyter", *SCRIPTS):
        program = programs / name
        program.write_text(
            f"#!{shutil.which('bash')}\n"
            """{ printf '%s\\x1f' "${0##*/}" "$@"; printf '\\n'; } >> "$LOG"\n""",
            encoding="utf-8",
        )
        program.chmod(0o755)
    (folder / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    (folder / ".venv" / "bin" / "activate").touch()
    (folder / "questions.txt").touch()
    log.write_text("")
    done = subprocess.run(
        [str(shutil.which(shell)), "-euc", block.text],
        cwd=folder,
        env={"PATH": str(programs), "LOG": str(log)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, f"{block}: {done.stderr}"
    return [line.split("\x1f")[:-1] for line in log.read_text(encoding="utf-8").splitlines()]


@functools.cache
def check_once(program: str, *arguments: str) -> None:
    check(program, list(arguments))


def check(program: str, arguments: list[str]) -> None:
    """Fail unless a command is one that its program would take."""
    if program in SCRIPTS:
        module = SCRIPTS[program].partition(":")[0]
        if module != "rag.console":
            return check("python", [f"{module.rpartition('.')[2]}.py", *arguments])
        name = "ask.page" if program == "rag-ask-page" else program.removeprefix("rag-")
        return check("python", ["-m", f"rag.{name}", *arguments])
    if program == "make":
        targets = re.findall(r"^(\w+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert arguments and set(arguments) <= set(targets)
    elif program == "torchrun":
        check("python", [argument for argument in arguments if not argument.startswith("--")])
    elif program == "python" and arguments[0].endswith(".py"):
        check_script_command(arguments[0].removesuffix(".py"), arguments[1:])
    elif program == "python":
        assert arguments[0] == "-m"
        check_module(arguments[1], arguments[2:])
    else:
        assert program == "jupyter" and arguments == ["lab", "notebooks"]


def check_script_command(script: str, arguments: list[str]) -> None:
    assert (PROJECT / f"{script}.py").exists()
    if arguments[:1] != ["-sc"]:
        check_script(compose_config(script, arguments), script, arguments)


def check_module(module: str, arguments: list[str]) -> None:
    if module == "pip":
        extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for chosen in re.findall(r"\[(.*)\]", " ".join(arguments)):
            assert set(chosen.split(",")) <= set(extras)
        return
    assert importlib.util.find_spec(module), module
    if "--help" in arguments or module.startswith(("benchmarks.", "pytest")):
        return
    if module in NAMED:
        from rag.ask.__main__ import split_arguments
        from rag.ask.command import about_documents

        settings, question = split_arguments(arguments)
        compose_config("documents" if about_documents(settings) else NAMED[module], settings)
        assert not question or module == "rag.ask"
    elif module == "rag.analysis":
        from rag.analysis import __main__ as analysis

        name, *rest = arguments
        tree = ast.parse((PROJECT / "rag" / "analysis" / f"{name}.py").read_text(encoding="utf-8"))
        (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
        known_settings = {each.arg for each in function.args.args} | {"run", "output"}
        assert name in analysis.ANALYSES and {each.partition("=")[0] for each in rest} <= known_settings
    elif module == "rag.training.reembedding":
        from rag.training.reembedding import parser

        parser().parse_args(arguments)
    elif module == "rag.search":
        from rag.search import parse as parse_search

        assert parse_search(arguments)[0]
    elif module in ("rag.compare", "rag.reproductions"):
        assert arguments and not any("=" in each for each in arguments)
    elif module == "rag.download":
        from rag.download.__main__ import parse

        assert arguments == ["list"] or parse(arguments)
    elif module in ("rag.demo", "rag.wiki"):
        own = {"seed", "preset", "outputs", "data"} | ({"limit", "reader"} if module == "rag.wiki" else set())
        assert {each.partition("=")[0] for each in arguments} <= own
    else:
        pytest.fail(f"nobody checks python -m {module}")


@of("bash")
def test_the_shell_starts_what_the_programs_take(block, tmp_path):
    started = commands(block, tmp_path)
    assert started or block.text.startswith("source")
    for program, *arguments in started:
        check_once(program, *arguments)


def headers() -> list:
    """The commands in the comment at the head of every config; the paper's many tables are slow."""
    parameters = []
    for file in sorted((PROJECT / "configs").rglob("*.yaml")):
        lines = re.findall(
            r"^#   ((?:python|torchrun|make|DATA=).*)$", file.read_text(encoding="utf-8"), re.MULTILINE
        )
        if lines:
            if any("${DATA[@]}" in line for line in lines):
                lines = ["DATA=(task.passages=a.tsv task.train=b.jsonl task.dev=c.jsonl)", *lines]
            name = file.relative_to(PROJECT).as_posix()
            slow = [pytest.mark.slow] if re.search("/(table|figure|hotswap)", name) else []
            parameters.append(
                pytest.param(
                    Block(name, 1, "bash", "\n".join(lines).replace("…", "given")), id=name, marks=slow
                )
            )
    return parameters


@pytest.mark.parametrize("block", headers())
def test_the_headers_of_configs_start_what_the_programs_take(block, tmp_path):
    for program, *arguments in commands(block, tmp_path):
        check_once(program, *arguments)


@of("bash")
def test_zsh_starts_the_same(block, tmp_path):
    if not shutil.which("zsh"):
        pytest.skip("zsh is not installed")
    assert commands(block, tmp_path, "zsh") == commands(block, tmp_path)


@of("bash")
def test_nothing_is_split_or_globbed_as_only_one_shell_does(block):
    """zsh neither splits $DATA at spaces nor takes [1,2] for text, both of which bash does."""
    for line in block.text.splitlines():
        bare = re.sub(r"'[^']*'|\"[^\"]*\"|(^|\s)#.*|\w+=\(.*\)$", "", line)
        assert not re.search(r"[\[\]*?]|\$\w", bare), line
    for expansion in re.findall(r"\S*\$[\w{][^\s\"]*\S*", block.text):
        assert re.fullmatch(r'"\$\{\w+\[@\]\}"', expansion), expansion


def test_a_wrong_command_is_noticed():
    """The check can fail."""
    for command in (
        "python train.py experiment=miniwiki/rag_sequenze",
        "python train.py n_dosc=3",
        "python evaluate.py checkpoint=x reprot=table1",
        "python train.py experiment=local/index",
        "python -m rag.ask checkpoint=x n_dosc=3",
        "python -m rag.analysis document_posterior runn=x",
        "python -m rag.download squadd",
        "make dmeo",
        "rag-train n_dosc=3",
        "rag-trian",
    ):
        with pytest.raises((Exception, pytest.fail.Exception)):
            check(*(lambda words: (words[0], words[1:]))(command.split()))


# -- Python --------------------------------------------------------------------------------------


@of("python")
def test_what_python_imports_is_there(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert not [each.name for each in node.names if not hasattr(module, each.name)]


def run_python(block: Block, folder: Path) -> str:
    text = block.text.replace("outputs/demo", str(DEMO))
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-W", "error", "-c", text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def python_blocks(demo: bool) -> list[Block]:
    """Those that open a run of the demo, or those that need nothing; a hub's are not run."""
    return [
        block
        for block in blocks("python")
        if ("outputs/demo" in block.text) is demo and "facebook/" not in block.text
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", [each for each in python_blocks(demo=False) if each.page != "README.md"], ids=str
)
def test_python_runs(block, tmp_path):
    run_python(block, tmp_path)


@pytest.mark.slow
def test_readme_answers_from_real_text(tmp_path):
    """Its Python example, with the reader that comes with the project, over a copy of the documents, so that no index
    is left beside them."""
    (block,) = [each for each in python_blocks(demo=False) if each.page == "README.md"]
    shutil.copytree(PROJECT / "notebooks" / "documents", tmp_path / "notebooks" / "documents")
    said, sentence, *passages, logprob = run_python(block, tmp_path).splitlines()
    assert (said, sentence) == ("Paris | france.md", "Its capital is Paris, which lies on the Seine.")
    priors, posteriors = zip(*(re.findall(r"[01]\.\d\d", line) for line in passages), strict=True)
    assert passages[0].startswith("France: ") and len(passages) == 5
    assert abs(sum(map(float, priors)) - 1) < 0.03 and abs(sum(map(float, posteriors)) - 1) < 0.03
    assert logprob.startswith("tensor([-0.0")


@pytest.mark.slow
@pytest.mark.parametrize("block", python_blocks(demo=True), ids=str)
def test_python_runs_on_the_demo(block, tmp_path):
    need_demo()
    assert run_python(block, tmp_path).strip()


# -- the commands themselves ---------------------------------------------------------------------


def need_demo() -> None:
    if not (DEMO / "report.json").exists():
        pytest.skip(f"{DEMO} holds no finished demo: make demo, or name its folder in RAG_DEMO")


def on_the_demo() -> Iterator[tuple[Block, int]]:
    """The commands that look at a run of the demo, by block and number; those that wait for a user are left out."""
    for block in blocks("bash"):
        lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
        for number, line in enumerate(each for each in lines if each.startswith(("python", "make", "rag-"))):
            looks = line.startswith(("python -m rag.ask ", "python -m rag.analysis", "python evaluate.py"))
            if looks and "outputs/demo" in line:
                yield block, number


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "number"), [pytest.param(*each, id=f"{each[0]}-{each[1]}") for each in on_the_demo()]
)
def test_commands_run_on_the_demo(block, number, tmp_path):
    need_demo()
    program, *arguments = commands(block, tmp_path)[number]
    assert program == "python"
    arguments = [argument.replace("outputs/demo", str(DEMO)) for argument in arguments]
    if arguments[0] == "evaluate.py":
        arguments += [f"results={tmp_path / 'results'}", "limit=4"]
    elif arguments[1] == "rag.analysis":
        arguments += [f"output={tmp_path / 'analysis'}"]
    else:
        arguments[3:3] = [f"paths.outputs={tmp_path}"]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        input="Where did Bertha Spalding live?\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def of_ones_own() -> list[Block]:
    by_text = {block.text: block for block in blocks("bash") if "experiment=scratch/dpr" in block.text}
    return list(by_text.values())  # one page or several


@pytest.mark.slow
@pytest.mark.parametrize("block", of_ones_own(), ids=str)
def test_a_world_of_ones_own_is_trained(block, tmp_path):
    """The five commands, on twelve passages and with models as small as they can be."""
    rows = [f'{n}\t"{text}"\t{title}' for n, (title, text) in enumerate(PASSAGES, start=1)]
    lines = [json.dumps({"question": q, "answers": [a], "positive_ids": [str(n)]}) for q, a, n in QUESTIONS]
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "passages.tsv").write_text("\n".join(["id\ttext\ttitle", *rows]) + "\n")
    for name in ("train", "dev"):
        (tmp_path / "my" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    started = commands(block, tmp_path)
    assert len(started) == 5
    for program, *arguments in started:
        stage = arguments[1].rpartition("/")[2]
        arguments = [each.replace("=my/", f"={tmp_path}/my/") for each in arguments]
        if arguments[0] == "evaluate.py":
            arguments[1] = f"checkpoint={tmp_path}/scratch/rag_sequence"
        else:
            arguments += [f"paths.outputs={tmp_path}", *TINY.get(stage, "").split()]
        done = subprocess.run([sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True)
        assert program == "python" and done.returncode == 0, done.stderr
    assert "em" in done.stdout.lower()


# -- pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks(), ids=str)
def test_every_block_says_what_it_is(block):
    assert block.language in LANGUAGES or block.page == "docs/log.md"


def test_the_readme_is_short_and_the_core_is_what_it_says():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    core = [
        PROJECT / path
        for row in re.findall(r"^\| §\S+ \| ● .*$", text, re.MULTILINE)
        for path in re.findall(r"\]\(([^)]+)\)", row)
    ]
    (claimed,) = re.findall(r"is under ([\d,]+) lines", text)
    assert len(core) == 6
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in core) < int(
        claimed.replace(",", "")
    )


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@functools.cache
def generated_pages() -> frozenset[str]:
    return frozenset(site().pages())


@pytest.mark.parametrize("page", [*PAGES, PROJECT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Pages that the site generates are known from the hook that writes them."""
    generated = generated_pages()
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(#[^)\s]*)?\)", text):
        if target in generated and page.parent.name == "docs":
            continue
        to = page.parent / target if target else page
        assert to.exists(), target
        assert not anchor or anchor[1:] in anchors(to), target + anchor


def test_errors_are_told_as_troubleshooting_quotes_them():
    source = " ".join(
        re.sub(r'"\s*\n\s*f?"', "", file.read_text(encoding="utf-8"))
        for file in (PROJECT / "rag").rglob("*.py")
    )
    text = (PROJECT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quotes = re.findall(r"^\*\*`([^`]+)`", text, re.MULTILINE)
    assert len(quotes) >= 8
    for quote in quotes:
        for part in filter(None, (each.strip() for each in quote.split("…"))):
            assert part in source, part


# -- the site ------------------------------------------------------------------------------------


def site():
    spec = importlib.util.spec_from_file_location("docs_site", PROJECT / "scripts" / "docs_site.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_setting_and_every_module_has_its_line():
    pages = site().pages()
    settings = pages["reference/settings.md"]
    assert "| `optimization.lr` | `3.0e-5` |" in settings
    assert "| `trainer.gradient_clip_val` | `0.1` |" in settings
    assert "| `datamodule.dev_negatives` | `30` |" in settings  # of objective=dpr, in its global place
    for group in (folder for folder in (PROJECT / "configs").iterdir() if folder.is_dir()):
        for file in group.glob("[!_]*.yaml"):
            assert f"### {group.name}={file.stem}\n" in settings
    for file in (PROJECT / "rag").rglob("[!_]*.py"):
        line = re.search(
            rf"\[{file.name}\]\(../../{file.relative_to(PROJECT)}\) \| (\S.*) \|",
            pages["reference/architecture.md"],
        )
        assert line, f"{file} has no docstring"


def test_help_is_what_the_site_shows():
    shown = site().help_texts()
    for command in ("train", "evaluate", "build_index"):
        usage = importlib.import_module(f"rag.commands.{command}").USAGE.strip()
        assert f"```text\n{usage}\n```" in shown


def test_the_api_page_names_every_public_object():
    import rag

    text = site().api()
    for name in dir(rag):
        assert f".{name}\n" in text, name


def test_importing_rag_loads_neither_torch_nor_transformers():
    code = "import sys, rag; dir(rag); print({'torch', 'transformers', 'numpy', 'hydra'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
    with pytest.raises(AttributeError, match="rag has no RagSequenze: it has"):
        import rag

        _ = rag.RagSequenze  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip('mkdocs is not installed: pip install -e ".[docs]" -c constraints.txt')
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "log p(y|x)" in (tmp_path / "site" / "reference" / "api.html").read_text(encoding="utf-8")
