"""Conditions of ``--input.filter``, such as ``n > 5 and lang == 'en'``, as expressions of Ray Data, which deprecated strings.

A condition is parsed, never evaluated: it may have columns, literals, lists of literals, comparisons, ``in``, ``and``, ``or``,
``not``, ``is_null``, ``is_not_null``, ``is_nan`` and ``is_in``. A column ``a.b`` is named so.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

from ray.data.expressions import Expr, col, lit

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def parse_filter(condition: str) -> Expr:
    """Return a condition as an expression. Raises ValueError if it is not a supported one."""
    try:
        return _convert(ast.parse(condition, mode="eval").body)
    except SyntaxError as error:
        raise ValueError(error.msg) from None


def _convert(node: ast.expr) -> Expr:
    match node:
        case ast.BoolOp(op=op, values=values):
            return reduce(operator.and_ if isinstance(op, ast.And) else operator.or_, map(_convert, values))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_convert(operand)
        case ast.Compare(left=left, ops=[ast.In() | ast.NotIn() as op], comparators=[values]):
            found = _convert(left).is_in(ast.literal_eval(values))
            return ~found if isinstance(op, ast.NotIn) else found
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
            expression: Expr = _COMPARISONS[type(op)](_convert(left), _convert(right))
            return expression
        case ast.Call(func=ast.Name(id="is_null"), args=[column]):
            return _convert(column).is_null()
        case ast.Call(func=ast.Name(id="is_not_null" | "is_valid"), args=[column]):
            return _convert(column).is_not_null()
        case ast.Call(func=ast.Name(id="is_nan"), args=[column]):
            return _convert(column) != _convert(column)
        case ast.Call(func=ast.Name(id="is_in"), args=[column, values]):
            return _convert(column).is_in(ast.literal_eval(values))
        case ast.Name() | ast.Attribute():
            return col(ast.unparse(node))
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name() | ast.Attribute() as operand):
            return col(ast.unparse(operand)) * lit(-1)
    try:
        return lit(ast.literal_eval(node))
    except ValueError:
        raise ValueError(f"{ast.unparse(node)!r} is not supported") from None
