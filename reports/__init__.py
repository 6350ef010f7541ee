"""Records in, tables out: measured numbers beside the published ones, imported lightly (pandas waits for a table)."""

from .record import Record

__all__ = ["Record"]
