"""Every message that a user can meet, read from the code: what is raised, with placeholders, by room.

A message says for itself what was expected or what to do; one that does not is found by ``tests/test_docs.py``.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "e2net"
# A programmer's mistakes keep their traceback; statuses have no words.
_NOT_FOR_USERS = {"TypeError", "NotImplementedError", "IndexError", "AssertionError", "SystemExit", "SIGTERMException"}
# How a message says what to do: behind a semicolon, in a sentence or part of its own, or as what was expected.
_VERBS = "add|change|choose|copy|give|install|keep|leave|make|name|or download|remove|save|see|set|take|try|write"
_ADVICE = re.compile(rf"[.?:,>] ((?:{_VERBS})\b.+)$", re.IGNORECASE)
_EXPECTED = re.compile(
    r"\b(?:expected|expects|must be|must have|must not|may be|takes?|needs?) (.+?)(?:[,;:.]? (?:found|got) |$)"
)
# What no setting can mend: faults of e2net, of a library or of the machine.
_OURS = re.compile("^(?:<path>: )?OpenCV could not encode")
# What stands for another error, which says it.
_ANOTHER = re.compile(r"<(?:error|fault|faults|reason|said|line|remedy|join|silence|first)>")


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
        if semicolon and not behind.startswith("found"):
            return behind.rstrip(".")
        if found := _ADVICE.search(self.text) or _EXPECTED.search(self.text):
            return found[1].rstrip(".")
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
        constants = {
            target.id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for function, node in _raises(tree):
            for kind, text in _texts(node.exc, functions, constants):
                if kind not in _NOT_FOR_USERS:
                    place = f"{path.as_posix()}: {function}" if function else path.as_posix()
                    one = Message(path.parts[0].removesuffix(".py"), place, kind, " ".join(text.split()))
                    if one.text and one.text != "None":  # else it is another error's own
                        found.setdefault((one.room, one.text), one)
    return tuple(found.values())


def _raises(node: ast.AST, function: str = "") -> Iterator[tuple[str, ast.Raise]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise) and child.exc is not None:
            yield function, child
        inner = child.name if isinstance(child, ast.FunctionDef | ast.ClassDef) else function
        yield from _raises(child, inner)


def _texts(
    raised: ast.expr | None, functions: dict[str, ast.FunctionDef], constants: dict[str, ast.expr], depth: int = 0
) -> Iterator[tuple[str, str]]:
    """Class and message of what is raised; of a function that makes the error, those of all that it returns."""
    if not isinstance(raised, ast.Call):
        return
    name = ast.unparse(raised.func).rpartition(".")[2]
    if name in functions and depth < 3:
        for node in ast.walk(functions[name]):
            if isinstance(node, ast.Return):
                yield from _texts(node.value, functions, constants, depth + 1)
        return
    argument = next((k.value for k in raised.keywords if k.arg == "detail"), None)
    argument = argument or (raised.args[-1] if len(raised.args) > 1 and name == "HTTPException" else None)
    argument = argument or (raised.args[0] if raised.args else None)
    if isinstance(argument, ast.Call) and isinstance(argument.func, ast.Name) and argument.func.id in functions:
        for node in ast.walk(functions[argument.func.id]):
            if isinstance(node, ast.Return) and node.value is not None and (text := _template(node.value, constants)):
                yield name, text
        return
    if isinstance(argument, ast.Name) and argument.id in constants:
        argument = constants[argument.id]
    yield name, _template(argument, constants)


def _template(node: ast.expr | None, constants: dict[str, ast.expr]) -> str:
    """A message's text with ``<name>`` for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part, constants) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _placeholder(node.value, constants)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left, constants) + _template(node.right, constants)
    if isinstance(node, ast.IfExp):
        return _template(node.body, constants) or _template(node.orelse, constants)
    return ""


def _placeholder(node: ast.expr, constants: dict[str, ast.expr]) -> str:
    if isinstance(node, ast.IfExp):
        return _template(node.body, constants) or _placeholder(node.body, constants)
    if isinstance(node, ast.Name) and isinstance(constants.get(node.id), ast.Constant):
        return _template(constants[node.id], constants)
    if isinstance(node, ast.Call) and node.args:  # ", ".join(names), len(names), str(path)
        return _placeholder(node.args[0], constants)
    names = [
        n.attr if isinstance(n, ast.Attribute) else n.id
        for n in ast.walk(node)
        if isinstance(n, ast.Attribute | ast.Name)
    ]
    names = [name.strip("_") for name in names if name not in ("self", "__name__")]
    return f"<{names[0]}>" if names else "<...>"


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
    parts = re.split(r"<(\w+|\.\.\.)>", text)
    parts[::2] = [re.sub(r"([*_\\|`])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    parts[1::2] = [f"`{part}`" for part in parts[1::2]]
    return "".join(parts)
