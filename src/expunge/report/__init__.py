"""Reports: what was measured, in words, tables and charts, as one HTML file and as JSON."""

from expunge.report.content import Report, ReportInput, compose
from expunge.report.html import render, write_report

__all__ = ["Report", "ReportInput", "compose", "render", "write_report"]
