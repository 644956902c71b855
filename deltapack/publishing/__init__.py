"""Packs on the Hugging Face Hub: what a repository of one holds, its model card, how it gets there and back."""
