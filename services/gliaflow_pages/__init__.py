"""HTML pages from templates, and the pictures on them: what every report shares."""
