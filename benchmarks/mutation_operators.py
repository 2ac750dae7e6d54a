"""The mutants of a module: mutmut's operators, less those that say little, and three of ours.

Left out are changes that no numerical test should care about, or that every test notices:

- docstrings, type hints and decorators; all strings (names of columns, figure labels, messages)
- what stands in a `raise` (messages of BadInput) or in a call of SILENT (progress, warnings)
- a value or an argument replaced by None; a positional argument removed unless it is the last
- `strict=` of zip, `device=` and what asks for "mps", which change nothing on valid input here
"""

from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from typing import NamedTuple

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation import mutators

LEFT_OUT = {
    mutators.operator_string,
    mutators.operator_assignment,
    mutators.operator_arg_removal,
    mutators.operator_dict_arguments,
    mutators.operator_lambda,
}
SILENT = ("progress", "warn", "warning", "print", "note", "BadInput", "Absent", "cast", "TypeVar")
IGNORED_KEYWORDS = ("strict", "device", "unit")
UNTOUCHED = (cst.Raise, cst.Annotation, cst.Decorator, cst.BaseString, cst.Import, cst.ImportFrom)


class Mutant(NamedTuple):
    """One changed line of a module."""

    key: str
    """Module and function, the lines before and after: how the list of equivalents names it."""
    of_line: str
    """The same for any change of these lines: `*` in place of the lines after."""
    lines: range
    """Lines of the original statement."""
    source: str


def removed_argument(node: cst.Call) -> Iterator[cst.CSTNode]:
    """Calls without one of the keyword arguments, or without the last positional one."""
    if len(node.args) < 2:
        return
    for i, argument in enumerate(node.args):
        last = all(later.keyword for later in node.args[i + 1 :])
        if argument.keyword or (last and not argument.star):
            yield node.with_changes(args=[*node.args[:i], *node.args[i + 1 :]])


def negated_condition(node: cst.If) -> Iterator[cst.CSTNode]:
    """`if a` as `if not a`, unless it is a comparison, which has mutants of its own."""
    if not m.matches(node.test, m.Comparison() | m.Name("TYPE_CHECKING")):
        test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


def removed_call(node: cst.SimpleStatementLine) -> Iterator[cst.CSTNode]:
    """A call whose result is not used, left out: seeds, optimizer steps, clipping."""
    if m.matches(node, m.SimpleStatementLine(body=[m.Expr(m.Call())])):
        yield node.with_changes(body=[cst.Pass()])


OPERATORS = [
    *(pair for pair in mutators.mutation_operators if pair[1] not in LEFT_OUT),
    (cst.Call, removed_argument),
    (cst.If, negated_condition),
    (cst.SimpleStatementLine, removed_call),
]


class _Visitor(cst.CSTVisitor):
    """Collects (node, changed node, function, statement) of a module."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[cst.CSTNode, cst.CSTNode, str, range]] = []
        self.names: list[str] = []
        self.statements: list[range] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, UNTOUCHED) or _silent(node):
            return False
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self.names.append(node.name.value)
        if isinstance(node, cst.BaseCompoundStatement | cst.SimpleStatementLine):
            self.statements.append(self._lines(node))
        for kind, operator in OPERATORS:
            if isinstance(node, kind):
                for changed in operator(node):
                    self.found.append((node, changed, ".".join(self.names), self.statements[-1]))
        return True

    def on_leave(self, node: cst.CSTNode) -> None:
        if isinstance(node, UNTOUCHED) or _silent(node):
            return
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self.names.pop()
        if isinstance(node, cst.BaseCompoundStatement | cst.SimpleStatementLine):
            self.statements.pop()

    def _lines(self, node: cst.CSTNode) -> range:
        """The lines of a statement; of a compound one, those before its body."""
        place = self.get_metadata(PositionProvider, node)
        end = place.end.line
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            return range(place.start.line, end + 1)
        if hasattr(node, "body") and isinstance(node.body, cst.IndentedBlock):
            body = self.get_metadata(PositionProvider, node.body)
            end = max(place.start.line, body.start.line - 1)
        return range(place.start.line, end + 1)


def _silent(node: cst.CSTNode) -> bool:
    """Is it something that changes no number?"""
    if isinstance(node, cst.Arg) and node.keyword is not None:
        return node.keyword.value in IGNORED_KEYWORDS
    if isinstance(node, cst.IfExp):
        return bool(m.findall(node.test, m.SimpleString(value='"mps"')))
    return isinstance(node, cst.Call) and (
        m.matches(node.func, m.OneOf(*(m.Name(name) for name in SILENT)))
        or m.matches(node.func, m.Attribute(attr=m.OneOf(*(m.Name(name) for name in SILENT))))
    )


def _changed_lines(before: str, after: str) -> tuple[str, str]:
    """The differing lines of two sources, each as one line."""
    old, new = before.splitlines(), after.splitlines()
    blocks = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    changed = [block for block in blocks if block[0] != "equal"]
    first, last = changed[0], changed[-1]
    lines = old[first[1] : last[2]], new[first[3] : last[4]]
    return " ".join(map(str.strip, lines[0])), " ".join(map(str.strip, lines[1]))


def _only_ignored(node: cst.CSTNode, changed: cst.CSTNode) -> bool:
    """Does a removed argument only drop one of IGNORED_KEYWORDS?"""
    if not (isinstance(node, cst.Call) and isinstance(changed, cst.Call)):
        return False
    gone = [argument for argument in node.args if all(argument is not a for a in changed.args)]
    return any(a.keyword is not None and a.keyword.value in IGNORED_KEYWORDS for a in gone)


def mutants(module: str, source: str) -> Iterable[Mutant]:
    """Every mutant of a module's source, in the order of its lines."""
    wrapper = MetadataWrapper(cst.parse_module(source))
    visitor = _Visitor()
    tree = wrapper.visit(visitor)
    seen = set()
    for node, changed, function, lines in visitor.found:
        if _only_ignored(node, changed):
            continue
        mutated = wrapper.module.deep_replace(node, changed).code
        if mutated == source or mutated in seen:
            continue
        seen.add(mutated)
        before, after = _changed_lines(source, mutated)
        of_line = f"{module} {function}".rstrip() + f"\n- {before}\n+ "
        yield Mutant(f"{of_line}{after}".rstrip(), f"{of_line}*", lines, mutated)
    assert tree.code == source
