"""The rules of the code as tests: each finds nothing in the package, but its planted fault."""

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from transferkit.runs import folder

PACKAGE = Path(__file__).resolve().parents[1] / "transferkit"
MOST_LINES_IN_FILE, MOST_LINES_IN_FUNCTION, MOST_ARGUMENTS = 400, 60, 7

# From the bottom up: every package and every module at the package's top, and nothing else. Each
# imports from its own row or from rows before it.
LAYERS = (
    ("", "errors", "events", "redaction", "stopwatch", "timm_import", "units"),
    ("torchvision_ops",),
    ("processes", "stopping"),
    ("files",),
    ("config",),
    ("data",),
    ("runs",),
    ("backbones",),
    ("closed_form",),
    ("training",),
    ("recipes",),
    ("evaluation", "exporting", "inference", "pretraining"),
    ("console", "explain", "finetuning", "lab", "reporting", "viewing"),
    ("verbs",),
    ("cli",),
    ("__main__",),
)
HEAVY = {"torch", "timm", "torchvision", "numpy", "PIL", "matplotlib", "pydantic", "onnxruntime"}
ONLY_IMPORTED_BY = {"typer": "cli", "rich": "console"}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager", "handler"}
WRITERS = {"runs.folder", "files.atomic_write", "files.row_files", "training.boundary_cache"}
WRITING_CALLS = {"write_text", "write_bytes", "savefig", "save_file", "imsave", "savetxt", "savez"}
IN_A_RUN = {
    value
    for value in vars(folder).values()
    if isinstance(value, str) and value.endswith((".toml", ".safetensors", ".json", ".csv", ".txt"))
}


@dataclass(frozen=True)
class Module:
    """A module of the package. name: dotted, below transferkit; "" is the package itself."""

    name: str
    source: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): Module(name_of(path), path.read_text()) for path in PACKAGE.rglob("*.py")}


def imported(module: Module) -> set[str]:
    """Full dotted names of all that is imported anywhere in a module, also inside functions."""
    names = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dependencies(module: Module) -> set[str]:
    """Modules of the package that a module imports; what is no module is a name in its parent."""
    own = set()
    for full in imported(module):
        if full.split(".")[0] == "transferkit":
            name = full.removeprefix("transferkit").lstrip(".")
            own.add(name if name in MODULES else name.rpartition(".")[0])
    return own


def layer(name: str) -> int:
    """The row of a module: that of the part of its name below transferkit."""
    return next(row for row, members in enumerate(LAYERS) if name.split(".")[0] in members)


def public_definitions(module: Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions and classes of a module and public methods of its public classes."""
    bodies = [module.tree.body]
    while bodies:
        for node in bodies.pop():
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
                yield node
                if isinstance(node, ast.ClassDef):
                    bodies.append(node.body)


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """All arguments but self and cls."""
    given = function.args
    extra = [argument for argument in (given.vararg, given.kwarg) if argument]
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *extra]
    return [argument for argument in every if argument.arg not in ("self", "cls")]


def long_files(module: Module) -> list[str]:
    lines = len(module.source.splitlines())
    return [f"{lines} lines"] if lines > MOST_LINES_IN_FILE else []


def long_functions(module: Module) -> list[str]:
    sizes = {f.name: f.end_lineno - f.lineno + 1 for f in module.functions() if f.end_lineno}
    return [f"{name}: {n} lines" for name, n in sizes.items() if n > MOST_LINES_IN_FUNCTION]


def many_arguments(module: Module) -> list[str]:
    if module.name.split(".")[0] == "cli":  # its signatures are made from the configuration
        return []
    counts = [(f.name, len(arguments(f))) for f in module.functions()]
    return [f"{name}: {n} arguments" for name, n in counts if n > MOST_ARGUMENTS]


def missing_docstrings(module: Module) -> list[str]:
    missing = [] if not module.source or ast.get_docstring(module.tree) else ["the module"]
    return missing + [d.name for d in public_definitions(module) if not ast.get_docstring(d)]


def missing_annotations(module: Module) -> list[str]:
    functions = [d for d in public_definitions(module) if isinstance(d, ast.FunctionDef)]
    bare = [f"{f.name}({a.arg})" for f in functions for a in arguments(f) if a.annotation is None]
    return bare + [f"{f.name} ->" for f in functions if f.returns is None]


def upward_imports(module: Module) -> list[str]:
    return [name for name in dependencies(module) if layer(name) > layer(module.name)]


def reserved_imports(module: Module) -> list[str]:
    roots = {full.split(".")[0] for full in imported(module)}
    return [
        r
        for r in roots & ONLY_IMPORTED_BY.keys()
        if ONLY_IMPORTED_BY[r] != module.name.split(".")[0]
    ]


def stray_writes(module: Module) -> list[str]:
    if module.name in WRITERS:
        return []
    found = []
    for call in (node for node in ast.walk(module.tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        values = [*call.args, *(keyword.value for keyword in call.keywords)]
        modes = {str(v.value) for v in values if isinstance(v, ast.Constant)}
        writes = name.split(".")[-1] == "open" and modes & {"w", "wb", "a", "ab", "x", "xb", "w+b"}
        if writes or name.split(".")[-1] in WRITING_CALLS or name in ("torch.save", "np.save"):
            found.append(f"line {call.lineno}: {name}")
    return found


def run_file_names(module: Module) -> list[str]:
    if module.name == "runs.folder":
        return []
    texts = {node.value for node in ast.walk(module.tree) if isinstance(node, ast.Constant)}
    return [text for text in IN_A_RUN if text in texts]


def unfinished(module: Module) -> list[str]:
    lines = enumerate(module.source.splitlines(), start=1)
    return [f"line {n}" for n, text in lines if "TO" + "DO" in text or "FIX" + "ME" in text]


def vague_names(module: Module) -> list[str]:
    return [part for part in module.name.split(".") if part in VAGUE_NAMES]


def planted(*lines: str) -> Module:
    return Module("data.x", "\n".join(lines))


# Each rule with a module that breaks it once.
RULES: dict[Callable[[Module], list[str]], Module] = {
    long_files: planted(*["x = 1"] * (MOST_LINES_IN_FILE + 1)),
    long_functions: planted("def f():", *["    x = 1"] * MOST_LINES_IN_FUNCTION),
    many_arguments: planted("def f(a, b, c, d, /, e, f, *g, h): ..."),
    missing_docstrings: planted('"""One."""', "class A:", '    """Two."""', "    def f(): ..."),
    missing_annotations: planted("class A:", "    def f(self, a: int, b) -> None: ..."),
    upward_imports: planted(
        "from transferkit.events import Notice",  # a leaf
        "def f():",
        "    from transferkit.backbones import create",
    ),
    reserved_imports: planted("from rich.table import Table"),
    stray_writes: planted("open(path)", "open(path, mode='w')"),
    run_file_names: planted("path = run.path / 'model.json'"),
    unfinished: planted("x = 1  # TO" + "DO: more"),
    vague_names: Module("data.utils", ""),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Callable[[Module], list[str]]) -> None:
    problems = {name: rule(module) for name, module in MODULES.items()}
    assert {name: found for name, found in problems.items() if found} == {}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_finds_its_planted_fault(rule: Callable[[Module], list[str]]) -> None:
    assert len(rule(RULES[rule])) == 1


def test_the_package_was_found() -> None:
    assert {"", "errors", "config", "events"} <= MODULES.keys()
    listed = [name for row in LAYERS for name in row]
    assert sorted(listed) == sorted({name.split(".")[0] for name in MODULES})


def test_imports_have_no_cycle() -> None:
    graph = {name: dependencies(module) - {name} for name, module in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("name", ["cli", "config", "console", "errors"])
def test_import_stays_light(name: str) -> None:
    code = f"import json, sys, transferkit.{name}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert HEAVY & set(json.loads(done.stdout)) == set()


def test_the_page_of_the_house_names_every_package() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {name for name in packages if f"`{name}/`" not in page} == set()


# Folders of tests that mirror no package: whole commands, attacks, and what tests read.
NOT_MIRRORS = {"end_to_end", "faults", "hostile", "fuzz", "browser", "fixtures"}
# Packages without a folder of their own: the tests of whole commands cover them.
COVERED_BY_COMMANDS = {"verbs"}
# Test files of a subject that no single module holds.
SUBJECTS = {
    "": {"architecture", "lowest_versions", "mutations_table"},
    "data": {"names_alike", "picture_memory", "pictures_page"},
    "training": {"entering", "frozen_blocks", "network_settings"},
}


def unmirrored(tests: Path) -> list[str]:
    """List what below `tests` mirrors nothing, and packages that nothing mirrors.

    A file is test_<module>.py, or test_<package>_<module>.py where another package has that module;
    test_<package>.py is of the package itself.
    """
    folders = {path.parent.name for path in tests.glob("*/*") if path.name != "__pycache__"}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    problems = sorted(packages - COVERED_BY_COMMANDS - folders)
    problems += sorted(folders - packages - NOT_MIRRORS - {"__pycache__"})
    for path in sorted({*tests.glob("test_*.py"), *tests.glob("*/test_*.py")}):
        package = "" if path.parent == tests else path.parent.name
        if package in packages | {""}:
            modules = {module.stem for module in (PACKAGE / package).iterdir()} | {package}
            subject = path.stem.removeprefix("test_")
            allowed = modules | SUBJECTS.get(package, set())
            if not {subject, subject.removeprefix(f"{package}_")} & allowed:
                problems.append(path.relative_to(tests).as_posix())
    return problems


def test_the_tests_mirror_the_package() -> None:
    tests = PACKAGE.parent / "tests"
    assert unmirrored(tests) == []
    named = {f"{package}/test_{name}.py" for package in SUBJECTS for name in SUBJECTS[package]}
    assert {name for name in named if not (tests / name.lstrip("/")).exists()} == set()
    files = [path.name for path in tests.rglob("test_*.py")]
    assert sorted(files) == sorted(set(files))  # pytest imports them by their names alone


def test_what_mirrors_nothing_is_found(tmp_path: Path) -> None:
    for package in PACKAGE.glob("*/__init__.py"):
        (tmp_path / package.parent.name).mkdir()
        (tmp_path / package.parent.name / "conftest.py").touch()
    for name in ("data/test_decode.py", "pretraining/test_pretraining_loop.py", "test_units.py"):
        (tmp_path / name).touch()
    assert unmirrored(tmp_path) == []
    (tmp_path / "cellar").mkdir()
    for name in ("cellar/test_decode.py", "data/test_everything.py", "test_nothing.py"):
        (tmp_path / name).touch()
    (tmp_path / "runs" / "conftest.py").unlink()
    assert unmirrored(tmp_path) == ["runs", "cellar", "data/test_everything.py", "test_nothing.py"]
