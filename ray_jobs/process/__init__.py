"""Fresh pinned processes and what runs in them: neither Ray nor pyarrow is imported here."""
