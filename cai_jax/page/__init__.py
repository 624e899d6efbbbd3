"""Self-contained pages: HTML that escapes by construction, and plots drawn as inline SVG."""
