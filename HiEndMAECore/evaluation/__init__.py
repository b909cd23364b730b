"""Evaluation: matching of cases, overlap and surface metrics, statistics, and reports."""
