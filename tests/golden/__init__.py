"""Golden transcripts of model servers; see README.md."""
