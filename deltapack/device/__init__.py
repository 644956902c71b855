"""Packs in memory, in the form that a device decodes: laid out (`ready`), sent (`resident`), and run (`backends`)."""
