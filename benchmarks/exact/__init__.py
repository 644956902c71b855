"""Exact packs on real pairs, on pairs and steps of training that were made for it, beside peers and the entropy."""
