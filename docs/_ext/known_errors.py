"""Every message that a user can meet, read from the code: what is raised, with placeholders, by room.

A message says for itself what was expected or what to do; one that does not is found by ``tests/test_docs.py``.
"""

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "e2net"
# A programmer's mistakes keep their traceback; statuses have no words.
_NOT_FOR_USERS = {"TypeError", "NotImplementedError", "IndexError", "AssertionError", "SystemExit", "SIGTERMException"}
# How a message says what to do: behind a semicolon, in a sentence or part of its own, or as what was expected.
_VERBS = (
    "add|call|change|check|choose|compute|convert|copy|download|export|give|install|keep|leave|lower|make|move|"
    "or download|put|remove|report|run|save|scale|see|set|take|try|update|wait|write"
)
_ADVICE = re.compile(rf"(?:[.?:,>] (?=(?:{_VERBS})\b)|[.:] (?=name\b))(.+)$", re.IGNORECASE)
_FOUND = r"(?:[,;:] found |$)"
_EXPECTED = re.compile(rf"\bexpect(?:ed|s) (.+?){_FOUND}")
_MUST = re.compile(rf"((?:[^:;]|:(?! ))+? (?:must|may|needs?|takes?)\b .+?){_FOUND}")
# What no setting can mend: faults of e2net, of a library or of the machine.
_OURS = re.compile("^(?:<path>: )?OpenCV could not encode")
# What stands for another error, which says it.
_ANOTHER = re.compile(r"<(?:error|fault|faults|reason|said|line|remedy|silence|first|because|words)>")


@dataclass(frozen=True)
class Message:
    """One place that raises.

    Attributes:
        room: folder of the code below ``e2net``, or its file.
        place: ``file.py: function``.
        kind: class of the exception.
        text: the message; placeholders are ``<name>``.
    """

    room: str
    place: str
    kind: str
    text: str

    @property
    def remedy(self) -> str:
        """What to do: behind the last semicolon, else what was expected; empty where the message says neither."""
        _, semicolon, behind = self.text.rpartition("; ")
        if not semicolon or behind.startswith("found") or behind.count(")") > behind.count("("):
            found = _ADVICE.search(self.text) or _EXPECTED.search(self.text) or _MUST.search(self.text)
            behind = found[1].strip() if found else ""
        if re.fullmatch(r"(?:one of )?<[^<>]+>", behind):
            return "as the line itself says"
        if behind:
            return re.sub(r"(?<!\.)\.$", "", behind.removeprefix("expected "))
        if _OURS.match(self.text):
            return "report it, with the command: a fault of e2net or of a library"
        return "as the error within it says" if _ANOTHER.search(self.text) else ""


@cache
def messages() -> tuple[Message, ...]:
    """All of them, in the order of the files, each once a room."""
    found: dict[tuple[str, str], Message] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE)
        tree = ast.parse(file.read_text(encoding="utf-8"))
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        constants = _constants(file) | _imported(tree)
        for function, node in _raises(tree):
            for kind, text in _texts(node.exc, functions, constants, function):
                if kind not in _NOT_FOR_USERS:
                    place = f"{path.as_posix()}: {function.name}" if function else path.as_posix()
                    one = Message(path.parts[0].removesuffix(".py"), place, kind, " ".join(text.split()))
                    if one.text and one.text != "None":  # else it is another error's own
                        found.setdefault((one.room, one.text), one)
    return tuple(found.values())


def _constants(file: Path) -> dict[str, ast.expr]:
    """What a module's names stand for."""
    return _assigned(ast.parse(file.read_text(encoding="utf-8")).body)


def _imported(tree: ast.AST) -> dict[str, ast.expr]:
    """What the names stand for that a module takes from others of e2net."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE.name}."):
            file = PACKAGE.parent / f"{(node.module or '').replace('.', '/')}.py"
            there = _constants(file) if file.is_file() else {}
            found |= {one.asname or one.name: there[one.name] for one in node.names if one.name in there}
    return found


def _assigned(body: Iterable[ast.AST]) -> dict[str, ast.expr]:
    """Names that are given a value once."""
    pairs = []
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    pairs.append((target.id, node.value))
                elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    both = zip(target.elts, node.value.elts, strict=True)
                    pairs += [(name.id, value) for name, value in both if isinstance(name, ast.Name)]
    times = Counter(name for name, _ in pairs)
    return {name: value for name, value in pairs if times[name] == 1}


def _within(function: ast.FunctionDef | None, constants: dict[str, ast.expr]) -> dict[str, ast.expr]:
    """What names stand for in a function, whose own hide those of the module."""
    if function is None:
        return constants
    nodes = list(ast.walk(function))
    hidden = {node.arg for node in nodes if isinstance(node, ast.arg)}
    hidden |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    others = {name: value for name, value in constants.items() if name not in hidden}
    return others | _assigned(nodes)


def _raises(
    node: ast.AST, function: ast.FunctionDef | None = None
) -> Iterator[tuple[ast.FunctionDef | None, ast.Raise]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise) and child.exc is not None:
            yield function, child
        yield from _raises(child, child if isinstance(child, ast.FunctionDef) else function)


def _texts(
    raised: ast.expr | None,
    functions: dict[str, ast.FunctionDef],
    constants: dict[str, ast.expr],
    function: ast.FunctionDef | None,
    depth: int = 0,
) -> Iterator[tuple[str, str]]:
    """Class and message of what is raised; of a function that makes the error, those of all that it returns."""
    if not isinstance(raised, ast.Call):
        return
    name = ast.unparse(raised.func).rpartition(".")[2]
    if name in functions and depth < 3:
        for node in ast.walk(functions[name]):
            if isinstance(node, ast.Return):
                yield from _texts(node.value, functions, constants, functions[name], depth + 1)
        return
    argument = next((k.value for k in raised.keywords if k.arg == "detail"), None)
    argument = argument or (raised.args[-1] if len(raised.args) > 1 and name == "HTTPException" else None)
    argument = argument or (raised.args[0] if raised.args else None)
    if isinstance(argument, ast.Call) and isinstance(argument.func, ast.Name) and argument.func.id in functions:
        maker = functions[argument.func.id]
        for node in ast.walk(maker):
            if isinstance(node, ast.Return) and (text := _template(node.value, _within(maker, constants))):
                yield name, text
        return
    scope = _within(function, constants)
    if isinstance(argument, ast.Name) and argument.id in scope:
        argument = scope[argument.id]
    yield name, _template(argument, scope)


def _template(node: ast.expr | None, scope: dict[str, ast.expr]) -> str:
    """A message's text with ``<name>`` for what is filled in; empty for what is no text."""
    if isinstance(node, ast.Constant):
        return "" if node.value is None else str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part, scope) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _placeholder(node.value, scope)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left, scope) + _template(node.right, scope)
    if isinstance(node, ast.IfExp):
        return _template(node.body, scope) or _template(node.orelse, scope)
    return ""


def _placeholder(node: ast.expr, scope: dict[str, ast.expr]) -> str:
    """What is filled in: the text itself where the code has it, else a word for it."""
    if isinstance(node, ast.IfExp):
        return _placeholder(node.body, scope)
    if isinstance(node, ast.BinOp | ast.Name) and (number := _number(node, scope)) is not None:
        return str(number)
    if isinstance(node, ast.Name) and node.id in scope:
        without = {name: value for name, value in scope.items() if name != node.id}
        return _listed(scope[node.id]) or _template(scope[node.id], without) or f"<{node.id.strip('_')}>"
    if isinstance(node, ast.Call):
        return _called(node, scope)
    if isinstance(node, ast.Constant | ast.JoinedStr):
        return _template(node, scope)
    if isinstance(node, ast.Subscript):
        return _part(node, scope)
    if isinstance(node, ast.Starred):
        return _placeholder(node.value, scope)
    if isinstance(node, ast.BoolOp):
        return _placeholder(node.values[0], scope)
    if isinstance(node, ast.GeneratorExp | ast.ListComp):
        return _placeholder(node.generators[0].iter, scope)
    names = [
        n.attr if isinstance(n, ast.Attribute) else n.id
        for n in ast.walk(node)
        if isinstance(n, ast.Attribute | ast.Name)
    ]
    names = [name.strip("_") for name in names if name not in ("self", "__name__")]
    return f"<{names[0]}>" if names else "<...>"


def _number(node: ast.expr, scope: dict[str, ast.expr]) -> int | None:
    """What a sum, a product or a power of the code's own whole numbers is."""
    if isinstance(node, ast.Name) and node.id in scope:
        return _number(scope[node.id], {name: value for name, value in scope.items() if name != node.id})
    if isinstance(node, ast.Constant):
        return node.value if type(node.value) is int else None
    if not isinstance(node, ast.BinOp):
        return None
    left, right, operation = _number(node.left, scope), _number(node.right, scope), _OPERATIONS.get(type(node.op))
    return None if left is None or right is None or operation is None else operation(left, right)


def _part(node: ast.Subscript, scope: dict[str, ast.expr]) -> str:
    """What is taken of a list, of a mapping of the code's, or of anything else."""
    whole = scope.get(node.value.id) if isinstance(node.value, ast.Name) else None
    if isinstance(whole, ast.Dict | ast.Tuple | ast.List):
        keys = whole.keys if isinstance(whole, ast.Dict) else [ast.Constant(i) for i in range(len(whole.elts))]
        values = whole.values if isinstance(whole, ast.Dict) else whole.elts
        found = [
            value for key, value in zip(keys, values, strict=True) if key and ast.dump(key) == ast.dump(node.slice)
        ]
        return _placeholder(found[0], scope) if found else f"<{ast.unparse(node.value).strip('_').lower()}>"
    return _placeholder(node.value, scope)


_OPERATIONS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
# Of an array's own values, not of what holds them.
_OF_VALUES = {"min": "<lowest>", "max": "<highest>", "sum": "<number>"}


def _called(node: ast.Call, scope: dict[str, ast.expr]) -> str:
    """For ``len(names)``, ``", ".join(map(str, sizes))``, ``values.min()``, ``str(error).splitlines()``."""
    if isinstance(node.func, ast.Attribute) and node.func.attr != "join":
        on_module = isinstance(node.func.value, ast.Name) and node.func.value.id in ("np", "torch", "math")
        if not (on_module and node.args):
            found = _OF_VALUES.get(node.func.attr) or _placeholder(node.func.value, scope)
            mapping = scope.get(ast.unparse(node.func.value))
            if isinstance(mapping, ast.Dict) and node.func.attr in ("get", "values"):
                found = _listed(ast.Tuple(mapping.values)) if node.func.attr == "values" else ""
            return found
    if ast.unparse(node.func) == "getattr":
        return "<value>"
    if not node.args:
        return f"<{ast.unparse(node.func).rpartition('.')[2].strip('_')}>"
    arguments = [one for one in node.args if not isinstance(one, ast.Constant)] or node.args
    inside = _placeholder(arguments[-1 if ast.unparse(node.func) in ("map", "filter") else 0], scope)
    if ast.unparse(node.func) == "len":
        return f"<number of {inside.strip('<>')}>" if re.fullmatch(r"<[\w ]+>", inside) else "<number>"
    return "<type>" if ast.unparse(node.func) == "type" else inside


def _listed(node: ast.expr) -> str:
    """The values of a tuple, a set, a mapping's keys or a ``Literal``, where the code has them all."""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
        node = node.slice
    if (
        isinstance(node, ast.Call)
        and len(node.args) == 1
        and ast.unparse(node.func) in ("frozenset", "MappingProxyType")
    ):
        node = node.args[0]
    values = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", None)
    if not values or not all(isinstance(one, ast.Constant) for one in values):
        return ""
    return ", ".join(str(one.value) for one in values if isinstance(one, ast.Constant))


def page() -> str:
    """Tables of all messages, a room each, as Markdown."""
    lines = []
    rooms = dict.fromkeys(one.room for one in messages())
    for room in rooms:
        lines += [f"## {room}", "", "| message | expected, or what to do |", "|---|---|"]
        for one in messages():
            if one.room == room:
                lines.append(f"| {_cell(one.text)} | {_cell(one.remedy)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Placeholders as code, all else as it stands."""
    parts = re.split(r"<([\w ]+|\.\.\.)>", text)
    parts[::2] = [re.sub(r"([*_\\|`])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    parts[1::2] = [f"`{part}`" for part in parts[1::2]]
    return "".join(parts)
