"""One self-contained HTML file that follows a prompt through a model, from characters to the next token."""
