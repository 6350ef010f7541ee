"""The kinds of bad input, in the order of their records."""

from . import checkpoint_cases, command_cases, op_cases, task_cases

KINDS = (op_cases.KIND, checkpoint_cases.KIND, task_cases.KIND, command_cases.KIND)
