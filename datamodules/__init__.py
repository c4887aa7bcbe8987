"""Corpora, tokenizers and the batches made of them: one file a corpus, ordinary classes that know no Hydra."""
