"""Measure training throughput, attention, byte-level BPE, and the peaks of the device."""
