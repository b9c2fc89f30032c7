"""Rows to a table and a picture: everything shown is computed from rows and a run's log, and nothing is measured."""
