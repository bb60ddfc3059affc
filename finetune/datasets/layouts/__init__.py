"""Readers of data sets, one module a layout; `READERS` in `finetune/datasets/__init__.py` lists them."""
