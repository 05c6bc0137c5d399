"""The API process: HTTP, text and admission around an engine that runs in a process of its own."""
