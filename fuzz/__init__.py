"""Fuzzing of deltapack: inputs that are wrong in their structure and right in their checksums.

    python -m fuzz pack --runs 500 --seed 7       # the same inputs in every run
    python -m fuzz pack --atheris --seconds 1800  # guided by coverage; `pip install atheris`
    python -m fuzz pack --replay FILE             # an input that was found
"""
