"""Bugs put into correct programs, which prove the checks; and correct but unusual programs, which must stay silent."""
