"""Toys of the systems that are to come, each a data set and a task through the real
command line.
"""
