"""Texts to learn: named ones (`registry.toml`) and the user's own files.

Reading order: corpus.py, readers.py, cleaning.py, splitting.py, long.py, summary.py, registry.py, download.py.
"""

from shared.corpora.corpus import Corpus, at_hand, load_corpus
from shared.corpora.long import LongText
from shared.corpora.registry import REGISTRY
from shared.corpora.splitting import split

__all__ = ["REGISTRY", "Corpus", "LongText", "at_hand", "load_corpus", "split"]
