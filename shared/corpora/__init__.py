"""Texts to learn: named ones (`registry.toml`) and the user's own files.

Reading order: corpus.py, readers.py, registry.py, download.py.
"""

from shared.corpora.corpus import Corpus, load_corpus, split
from shared.corpora.registry import REGISTRY

__all__ = ["REGISTRY", "Corpus", "load_corpus", "split"]
