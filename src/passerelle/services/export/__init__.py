"""A result as a document for people: DOCX and PDF."""
