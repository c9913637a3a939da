"""Tests of object stores, by an emulator that speaks Cloud Storage's protocol."""
