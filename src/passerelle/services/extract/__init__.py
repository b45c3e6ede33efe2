"""Text out of files: `passerelle.services.extract.extractor` is the door, what is risky runs in a child of its own."""
