"""One self-contained HTML page: figures, evidence, control and provenance, readable offline."""

from mmlens.report.build import write_report

__all__ = ["write_report"]
