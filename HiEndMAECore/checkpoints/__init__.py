"""Compatibility: the modules of this package have moved to `HiEndMAECore.models`, and are imported from there.

Nothing inside HiEndMAECore uses these names. Scripts written for earlier versions do.
"""
