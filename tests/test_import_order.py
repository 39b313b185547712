"""The import order of DESIGN §1: a room knows only the rooms on lines above its own, and there is no circle."""

import ast
import importlib.util
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import voxdiff

SOURCE = Path(voxdiff.__file__).parent
FILES = {"wavelets", "volumes", "volume_files", "volume_grids", "volume_intensities", "volume_dicom", "shipped"}
FILES |= {"small_convolutions"}
LINES = [
    FILES,
    {"models", "schedulers", "physics", "data", "metrics"},
    {"pipelines"},
    {"training", "hub"},
    {"workflows"},
    {"cli"},
]
# Packages of the extras: an installation without them must still import every module.
HEAVY = {"monai", "deepinv", "gradio", "matplotlib", "pydicom", "highdicom", "scipy", "sklearn", "skimage"}
HEAVY |= {"tensorboard", "torchmetrics"}


def modules_below(folder):
    """Module name -> file, the root package itself (the lazy façade) left out."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = ("voxdiff", *path.relative_to(folder).with_suffix("").parts)
        modules[".".join(parts).removesuffix(".__init__")] = path
    return {name: path for name, path in modules.items() if name != "voxdiff"}


def imports_of(module, path, known):
    """The set of (imported module, line number, whether inside a function), however it is spelled."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        inner
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef))
        for inner in ast.walk(outer)
    }
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return {(target, node.lineno, node in lazy) for node in ast.walk(tree) for target in _targets(node, package, known)}


def _targets(node, package, known):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        return [_resolve(source, alias.name, known) for alias in node.names]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "voxdiff":
        return [_resolve("voxdiff", node.attr, known)]
    if isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
        return [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    return []


def _resolve(source, name, known):
    """Module that `from source import name` reads: a submodule, what the root exports lazily, or the source itself."""
    if f"{source}.{name}" in known:
        return f"{source}.{name}"
    return voxdiff._EXPORTS.get(name, source) if source == "voxdiff" else source


def line_of(module):
    room = module.split(".")[1]
    for number, rooms in enumerate(LINES, start=1):
        if room in rooms:
            return room, number
    raise AssertionError(f"{module} is in no room of DESIGN §1")


def violations(folder):
    """One sentence for each import that the house plan forbids."""
    known = modules_below(folder)
    imports = {module: sorted(imports_of(module, path, known)) for module, path in known.items()}
    return [*wrong_rooms(imports), *heavy_imports(imports), *circles(imports)]


def wrong_rooms(imports):
    for module, found in imports.items():
        room, number = line_of(module)
        for target, line, _ in found:
            if target.startswith("voxdiff."):
                other, other_number = line_of(target)
                if room != other and other_number >= number and not {room, other} <= FILES:
                    yield f"{module}:{line} (line {number}) imports {target} (line {other_number})"


def heavy_imports(imports):
    """An extra is imported inside a function, or in a module that others import inside functions only."""
    every = [item for found in imports.values() for item in found]
    eager, lazy = ({target for target, _, inside in every if inside is wanted} for wanted in (False, True))
    for module, found in imports.items():
        for target, line, inside in found:
            if target.split(".")[0] in HEAVY and not inside and (module in eager or module not in lazy):
                yield f"{module}:{line} imports {target} at module level"


def circles(imports):
    graph = {
        module: {target for target, *_ in found if target in imports and target != module}
        for module, found in imports.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"circle: {' <- '.join(error.args[1])}"


def test_every_room_knows_only_the_rooms_above_it():
    assert violations(SOURCE) == []


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (
            {"data/a.py": "def f():\n    from voxdiff.pipelines.base import x"},
            "data.a:2 (line 2) imports voxdiff.pipel",
        ),
        ({"data/a.py": "import voxdiff\nvoxdiff.Pipeline"}, "data.a:2 (line 2) imports voxdiff.pipelines.auto"),
        ({"data/a.py": "from voxdiff import WaveletUNet3DModel"}, "data.a:1 (line 2) imports voxdiff.models"),
        ({"models/a.py": "from voxdiff.schedulers import x"}, "models.a:1 (line 2) imports voxdiff.schedulers"),
        ({"training/a.py": "import voxdiff.hub.card"}, "training.a:1 (line 4) imports voxdiff.hub.card"),
        ({"volumes.py": "from .models import base"}, "volumes:1 (line 1) imports voxdiff.models"),
        (
            {"cli/a.py": "from importlib import import_module\nimport_module('voxdiff.new')"},
            "voxdiff.new is in no room",
        ),
        ({"metrics/a.py": "import monai.losses"}, "metrics.a:1 imports monai.losses at module level"),
        ({"hub/a.py": "from voxdiff.hub import b", "hub/b.py": "import pydicom"}, "hub.b:1 imports pydicom at module"),
        ({"hub/a.py": "from . import b", "hub/b.py": "from voxdiff.hub.a import x"}, "circle"),
    ],
)
def test_a_forbidden_import_is_found(files, complaint, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    try:
        found = violations(tmp_path)
    except AssertionError as error:
        found = [str(error)]
    assert len(found) == 1
    assert complaint in found[0]


def test_an_import_of_an_extra_inside_a_function_and_of_a_room_above_is_allowed(tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "a.py").write_text(
        "from voxdiff.pipelines.auto import Pipeline\ndef f():\n    import scipy.ndimage"
    )
    (tmp_path / "volumes.py").write_text(
        "from voxdiff import __version__\nfrom voxdiff.volume_files import load_volume"
    )
    assert violations(tmp_path) == []
