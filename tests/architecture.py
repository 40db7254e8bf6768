"""The rules of the source: who may import whom, what is banned where, and how long things may be.

A rule is a function `(path, text) -> ["path:line: what is wrong and what to do", ...]`, `path`
relative to the checkout.  tests/test_imports.py holds the source against them.
"""

import ast
import re
from collections.abc import Iterator

from tests import ROOT

TEXTS = {".py", ".sh", ".md", ".cfg", ".toml", ".txt", ".cff", ".yml", ".yaml", ".json", ".csv"}

# Imports point one way (DESIGN section 4): a room may import the rooms of earlier lines, and on its
# own line only what BESIDE says.
LAYERS = (
    ("types",),
    ("ops", "runtime"),
    ("pdes", "scores", "plots", "models"),
    ("data",),
    ("tasks",),
    ("config",),
    ("training",),
    ("evaluation",),
    ("diagnostics", "convert"),
    ("main",),
)
# the public API loads what it needs when it is called
LAZY = "__init__"
LEARNING = {"flax", "optax", "ml_collections", "orbax", "absl"}  # what ops/ must not know
OTHER_FRAMEWORKS = {"torch", "torchvision", "tensorflow", "tensorflow_datasets", "clu", "keras"}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
MACHINE_PATH = re.compile(
    r"(?<![\w.$}/])/(?:work|tmp|root|home|mnt|Users)/[\w.]|file://|\.\./shared(?!/data\")"
)


def files(*suffixes: str) -> list[str]:
    """Files of the project with one of the suffixes; what git ignores (runs, environments, caches)
    lies elsewhere.
    """
    folders = [ROOT / name for name in ("jaxvol", "configs", "docs", "launch", "tests", ".ci")]
    found = [p for p in ROOT.iterdir() if p.is_file()] + [
        p for f in folders for p in f.rglob("*") if p.is_file()
    ]
    chosen = [
        p for p in found if p.suffix in suffixes or p == ROOT / ".ci" / "run" and ".sh" in suffixes
    ]
    return sorted(p.relative_to(ROOT).as_posix() for p in chosen)


def imports(path: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything imported anywhere in a file; `from a import b`
    gives a.b.
    """
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def banned_imports(path: str, tree: ast.AST, banned: set[str], remedy: str) -> list[str]:
    """One line per import of a banned top-level package."""
    return [
        f"{path}:{line}: imports {name}; {remedy}"
        for line, name in imports(path, tree)
        if name.split(".")[0] in banned
    ]


def room(module: str) -> str:
    """jaxvol.ops.spectra.power -> ops; jaxvol itself -> __init__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def parses(path: str, text: str) -> list[str]:
    try:
        ast.parse(text)
    except SyntaxError as error:
        return [f"{path}:{error.lineno}: does not parse: {error.msg}"]
    return []


def earlier(own: str) -> set[str]:
    """Rooms of jaxvol that `own` may import besides itself."""
    for number, line in enumerate(LAYERS):
        if own in line:
            return {name for names in LAYERS[:number] for name in names}
    raise KeyError(own)


def direction(path: str, text: str) -> list[str]:
    top = path.split("/")[0]
    if top in ("configs", "docs", "launch", "tests"):
        return foreign(path, text, top)
    if top != "jaxvol":
        return []
    own = room(path.removesuffix(".py").replace("/", "."))
    if own == LAZY:
        return []
    try:
        allowed = earlier(own) | {own, "__version__"}
    except KeyError:
        return [f"{path}:1: has no place in LAYERS of tests/architecture.py; move it"]
    found = []
    for line, name in imports(path, ast.parse(text)):
        top, target = name.split(".")[0], room(name)
        if top in ("configs", "docs", "launch", "tests"):
            found.append(f"{path}:{line}: imports {name}, which no installed jaxvol has")
        elif top == "jaxvol" and target not in allowed:
            found.append(
                f"{path}:{line}: imports {name}, but {own} may import only "
                f"{', '.join(sorted(allowed))} of jaxvol"
            )
    return found


def circles(texts: dict[str, str]) -> list[list[str]]:
    """Modules of jaxvol that import one another at their top level, in a circle: which of them can
    be imported first would depend on chance.  texts: path -> source.
    """
    names = {
        path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): text
        for path, text in texts.items()
    }
    graph = {name: set() for name in names}
    for name, text in names.items():
        tree = ast.parse(text)
        top = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
        for _, target in imports(name.replace(".", "/") + ".py", top):
            target = target if target in names else target.rpartition(".")[0]
            if target in names and target != name and not name.startswith(target + "."):
                graph[name].add(target)
    while leaves := [n for n, targets in graph.items() if not targets & graph.keys()]:
        graph = {n: targets for n, targets in graph.items() if n not in leaves}
    return [sorted(graph)] if graph else []


# what is not shipped -> what else of the checkout it may import
OUTSIDE = {
    "configs": set(),
    "docs": {"docs"},
    "launch": {"launch", "tests"},
    "tests": {"tests", "launch", "docs"},
}


def foreign(path: str, text: str, top: str) -> list[str]:
    """configs, docs, launch and tests import jaxvol, and one another only where OUTSIDE says so."""
    return [
        f"{path}:{line}: imports {name}; {top} may import jaxvol and "
        f"{', '.join(sorted(OUTSIDE[top])) or 'nothing else of the checkout'}"
        for line, name in imports(path, ast.parse(text))
        if name.split(".")[0] in OUTSIDE and name.split(".")[0] not in OUTSIDE[top]
    ]


def ops_know_nothing_of_learning(path: str, text: str) -> list[str]:
    remedy = "ops/ is mathematics: take arrays and numbers, return arrays"
    return (
        banned_imports(path, ast.parse(text), LEARNING, remedy)
        if path.startswith("jaxvol/ops/")
        else []
    )


def importlib_only_in_modules(path: str, text: str) -> list[str]:
    if not path.startswith("jaxvol/") or path == "jaxvol/runtime/modules.py":
        return []
    tree, remedy = ast.parse(text), "modules are chosen by name in jaxvol/runtime/modules.py only"
    calls = [
        f"{path}:{node.lineno}: calls {node.func.id}; {remedy}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("__import__", "eval", "exec")
    ]
    return banned_imports(path, tree, {"importlib", "pkgutil", "runpy"}, remedy) + calls


def updates_only_in_step(path: str, text: str) -> list[str]:
    if not path.startswith("jaxvol/") or path == "jaxvol/training/step.py":
        return []
    named = (
        (
            node.lineno,
            node.attr
            if isinstance(node, ast.Attribute)
            else node.id
            if isinstance(node, ast.Name)
            else node.name,
        )
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Attribute, ast.Name, ast.alias))
    )
    return [
        f"{path}:{line}: {name} outside jaxvol/training/step.py, the only place where gradients "
        "are applied"
        for line, name in named
        if name in ("apply_updates", "apply_gradients")
    ]


def no_other_framework(path: str, text: str) -> list[str]:
    remedy = "the project runs without torch, TensorFlow and clu"
    return (
        []
        if path in ("launch/benchmarks/steps.py", "launch/benchmarks/rivals.py")
        else banned_imports(path, ast.parse(text), OTHER_FRAMEWORKS, remedy)
    )


def no_pickles(path: str, text: str) -> list[str]:
    if path.startswith("tests/"):  # they write pickles, to see them refused
        return []
    tree = ast.parse(text)
    allowed = [
        f"{path}:{node.value.lineno}: allow_pickle must be False"
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and node.arg == "allow_pickle"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ]
    return banned_imports(path, tree, PICKLES, "files are read without executing them") + allowed


def is_config(node: ast.AST, names: set[str]) -> bool:
    """The expression is a config or a block of one: config, phase.config, config.model,
    config["model"], self.config.x.
    """
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        if isinstance(node, ast.Attribute) and node.attr.endswith("config"):
            return True
        node = node.value
    return isinstance(node, ast.Name) and (node.id in names or node.id.endswith(("config", "cfg")))


def configs_by_attribute(path: str, text: str) -> list[str]:
    if not path.startswith("jaxvol/"):
        return []
    tree, names, found = ast.parse(text), set(), []
    for node in ast.walk(tree):  # names such as `block` in `block = config.optimizer`
        if isinstance(node, ast.Assign) and is_config(node.value, set()):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        got = (
            isinstance(called, ast.Attribute)
            and called.attr in ("get", "setdefault")
            and is_config(called.value, names)
        )
        read = (
            isinstance(called, ast.Name)
            and called.id == "getattr"
            and len(node.args) == 3
            and is_config(node.args[0], names)
        )
        if got or read:
            found.append(
                f"{path}:{node.lineno}: reads a config with a default, which hides a typo; read "
                "the attribute, "
                "and give the field its default in jaxvol/config/base.py"
            )
    return found


def length(path: str, text: str) -> list[str]:
    lines = len(text.splitlines())
    # jaxvol/config/base.py holds every field of every component, which is one list however long it
    # is
    long_file = (
        [f"{path}:{lines}: {lines} lines; split files at 300"]
        if lines > 300 and path != "jaxvol/config/base.py"
        else []
    )
    return long_file + [
        f"{path}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines; split "
        "functions at 60"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno + 1 > 60
    ]


def no_machine_paths(path: str, text: str) -> list[str]:
    if path in ("tests/test_imports.py", "tests/architecture.py"):  # the bad examples below
        return []
    return [
        f"{path}:{number}: names a path of one machine ({match[0]}...)"
        for number, line in enumerate(text.splitlines(), 1)
        for match in MACHINE_PATH.finditer(line)
    ]
