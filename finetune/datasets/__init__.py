"""Readers of annotated data: one file a layout, one convention behind them all."""
