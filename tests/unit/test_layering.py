"""Imports run one way (DESIGN, section 6), and the pure core stays without frameworks and without a network."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "hvtrain"

# From the bottom up. A module belongs to the longest prefix that it matches; it may import modules of its own
# layer and of those above it in this list. Modules of one group do not know of the other groups of their layer
# unless USES says so.
LAYERS = (
    ("hvtrain.errors", "hvtrain"),
    ("hvtrain.config", "hvtrain.data.sampler", "hvtrain.hybrid.costs", "hvtrain.hybrid.partition",
     "hvtrain.hybrid.schedule", "hvtrain.hybrid.clock", "hvtrain.hybrid.cluster", "hvtrain.hybrid.prediction",
     "hvtrain.hybrid.planner", "hvtrain.hybrid.reasons", "hvtrain.hybrid.measurement", "hvtrain.hybrid.speeds",
     "hvtrain.hybrid.splits",
     "hvtrain.hybrid.openings", "hvtrain.control.membership", "hvtrain.control.roster", "hvtrain.control.events", "hvtrain.control.causes",
     "hvtrain.control.crew", "hvtrain.control.seating", "hvtrain.control.assembling", "hvtrain.control.losing",
     "hvtrain.control.ending", "hvtrain.control.watching", "hvtrain.control.newcomers",
     "hvtrain.control.auth", "hvtrain.control.refusals", "hvtrain.callbacks",
     "hvtrain.failure", "hvtrain.target", "hvtrain.comm.buckets", "hvtrain.comm.loss_scale", "hvtrain.schedules",
     "hvtrain.probe", "hvtrain.tracing", "hvtrain.cgroups"),
    ("hvtrain.task", "hvtrain.data", "hvtrain.engine", "hvtrain.comm", "hvtrain.checkpoint", "hvtrain.report", "hvtrain.chaos",
     "hvtrain.control.messages", "hvtrain.control.process", "hvtrain.engine.handover"),
    ("hvtrain.adapters", "hvtrain.hybrid"),
    ("hvtrain.loop", "hvtrain.session", "hvtrain.saving", "hvtrain.evaluation", "hvtrain.progress", "hvtrain.meter",
     "hvtrain.recovery", "hvtrain.keeping", "hvtrain.horizon", "hvtrain.timeline", "hvtrain.hosting"),
    ("hvtrain.control", "hvtrain.launch", "hvtrain.trainer", "hvtrain.drill"),
    ("hvtrain.fitting",),
    ("hvtrain.keras", "hvtrain.torch"),
    ("hvtrain.cli",),
)
USES = {  # within a layer: who may know whom
    **{f"hvtrain.control.{part}": {f"hvtrain.control.{other}" for other in (
        "causes", "crew", "roster", "events", "assembling", "seating", "losing", "ending", "watching", "newcomers")}
       for part in ("membership", "assembling", "seating", "losing", "ending", "watching", "newcomers")},
    "hvtrain.control.roster": {"hvtrain.control.causes", "hvtrain.control.crew"},
    "hvtrain.control.events": {"hvtrain.control.causes"},
    "hvtrain.schedules": {"hvtrain.config"},
    "hvtrain.hybrid.partition": {"hvtrain.hybrid.costs", "hvtrain.hybrid.splits"},
    "hvtrain.hybrid.clock": {"hvtrain.hybrid.schedule"},
    "hvtrain.hybrid.prediction": {f"hvtrain.hybrid.{other}" for other in (
        "clock", "cluster", "costs", "partition", "schedule", "speeds")},
    "hvtrain.hybrid.planner": {f"hvtrain.hybrid.{other}" for other in (
        "cluster", "costs", "prediction", "reasons", "speeds")},
    "hvtrain.hybrid.reasons": {"hvtrain.hybrid.cluster", "hvtrain.hybrid.prediction"},
    "hvtrain.hybrid.speeds": {"hvtrain.hybrid.costs"},
    "hvtrain.hybrid.openings": {"hvtrain.config"},
    "hvtrain.hybrid.measurement": {"hvtrain.config", "hvtrain.hybrid.costs", "hvtrain.hybrid.speeds"},
    "hvtrain.drill": {"hvtrain.launch"},
    "hvtrain.task": {"hvtrain.data"},
    "hvtrain.engine.handover": {"hvtrain.engine", "hvtrain.checkpoint"},
    "hvtrain.comm": {"hvtrain.engine", "hvtrain.checkpoint"},  # codecs: the world they sum in, the state they keep
    "hvtrain.launch": {"hvtrain.control"},
    "hvtrain.hybrid": {"hvtrain.adapters"},
    "hvtrain.adapters": {"hvtrain.hybrid"},
    "hvtrain.loop": {"hvtrain.session", "hvtrain.saving", "hvtrain.evaluation", "hvtrain.progress", "hvtrain.meter",
                     "hvtrain.recovery", "hvtrain.keeping", "hvtrain.horizon", "hvtrain.timeline"},
    "hvtrain.recovery": {"hvtrain.keeping", "hvtrain.progress", "hvtrain.saving", "hvtrain.session"},
    "hvtrain.keeping": {"hvtrain.progress", "hvtrain.saving"},
    "hvtrain.horizon": {"hvtrain.progress"},
    "hvtrain.timeline": {"hvtrain.session"},
    "hvtrain.saving": {"hvtrain.session", "hvtrain.progress"},
    "hvtrain.evaluation": {"hvtrain.progress"},
}
FRAMEWORKS = {"torch", "tensorflow", "keras", "horovod"}
PURE = ("hvtrain.errors", "hvtrain.config", "hvtrain.data.sampler", "hvtrain.control.membership", "hvtrain.control.roster",
        "hvtrain.control.events", "hvtrain.control.causes", "hvtrain.control.crew", "hvtrain.control.seating",
        "hvtrain.control.assembling", "hvtrain.control.losing", "hvtrain.control.ending", "hvtrain.control.watching",
        "hvtrain.control.newcomers", "hvtrain.control.auth", "hvtrain.comm.buckets", "hvtrain.comm.loss_scale", "hvtrain.schedules", "hvtrain.callbacks",
        "hvtrain.failure",
        "hvtrain.hybrid.costs", "hvtrain.hybrid.partition", "hvtrain.hybrid.schedule", "hvtrain.hybrid.clock",
        "hvtrain.hybrid.cluster", "hvtrain.hybrid.prediction", "hvtrain.hybrid.planner", "hvtrain.hybrid.reasons",
        "hvtrain.hybrid.measurement", "hvtrain.hybrid.splits", "hvtrain.hybrid.openings", "hvtrain.control.messages", "hvtrain.control.tally")
FRAMEWORK_USERS = ("hvtrain.adapters", "hvtrain.hybrid", "hvtrain.engine.horovod_", "hvtrain.engine.world", "hvtrain.data",
                   "hvtrain.keras", "hvtrain.torch")


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), ast.parse(path.read_text())


TREES = dict(modules())


def imports(tree, name):
    """Modules that ``tree`` imports, inside of functions too; what only type checkers read is left out."""
    skipped = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.If)
               and "TYPE_CHECKING" in ast.unparse(node.test) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in TREES else node.module


def group(name):
    """(layer, group) of a module of ours."""
    found = [(len(prefix), layer, prefix) for layer, prefixes in enumerate(LAYERS) for prefix in prefixes
             if name == prefix or (name.startswith(prefix + ".") and prefix != "hvtrain")]
    assert found, f"{name} belongs to no layer; give it a place in LAYERS"
    return max(found)[1:]


@pytest.mark.parametrize("name", TREES)
def test_imports_run_one_way(name):
    layer, own = group(name)
    for other in imports(TREES[name], name):
        if other.partition(".")[0] != "hvtrain":
            continue
        theirs, whose = group(other)
        assert theirs <= layer, f"{name} (layer {layer}) imports {other} (layer {theirs})"
        if theirs == layer and whose != own:
            assert whose in USES.get(own, ()), f"{name} imports {other}, its neighbour on the same layer"


@pytest.mark.parametrize("name", [name for name in TREES if name.startswith(PURE)])
def test_the_core_is_pure(name):
    found = {other.partition(".")[0] for other in imports(TREES[name], name)}
    assert not found & (FRAMEWORKS | {"aiohttp", "asyncio", "socket", "threading", "subprocess"})


@pytest.mark.parametrize("name", [name for name in TREES if not name.startswith(FRAMEWORK_USERS)])
def test_frameworks_are_known_to_the_adapters_and_the_engine_only(name):
    assert not FRAMEWORKS & {other.partition(".")[0] for other in imports(TREES[name], name)}


@pytest.mark.parametrize("name", TREES)
def test_nothing_unpickles(name):
    assert not {"pickle", "cloudpickle", "dill", "marshal", "shelve"} & {o.partition(".")[0] for o in imports(TREES[name], name)}
