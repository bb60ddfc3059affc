"""The detector network and its parts: modules that know tensors and no files."""
