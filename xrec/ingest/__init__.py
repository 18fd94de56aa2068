"""From a raw log to clean events, a quarantine and a catalogue."""
