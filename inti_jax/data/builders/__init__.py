"""Builders: what turns a source of videos into a prepared dataset."""
