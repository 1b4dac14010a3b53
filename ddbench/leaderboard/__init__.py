"""Boards from records: observations, statistics, tables."""
