"""Files of a harvested slide: record, tar, fingerprint, and the decision whether it is complete."""
