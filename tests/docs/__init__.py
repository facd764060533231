"""Tests of the documentation: what it shows runs, links lead somewhere, generated parts are current."""
