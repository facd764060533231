"""Reports: what was measured, in words, tables and charts, as one HTML file and as JSON."""

from expunge.report.content import Report, ReportInput, compose
from expunge.report.html import render, write_report
from expunge.report.run_folder import read_run_folder

__all__ = ["Report", "ReportInput", "compose", "read_run_folder", "render", "write_report"]
