"""Shards to augmented batches: shard set, epoch order, loader, crops, views."""
