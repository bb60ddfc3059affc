"""Detectors that DPA-P2PNet is compared with (Tables 3 and 4): networks, and decoders of their output."""
