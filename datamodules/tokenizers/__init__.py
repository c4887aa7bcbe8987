"""Tokenizers: words as WoBERT (`word`), characters as BERT (`char`), any Hugging Face tokenizer
(`pretrained`).
"""
