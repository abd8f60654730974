"""Sessions, scheduling and the engine that owns the device."""
